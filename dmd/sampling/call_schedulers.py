"""Schedulers of diffusers that make the calls of a student, so that a stock pipeline draws the student's images.

A pipeline calls the network at the timesteps that `set_timesteps(K)` of its scheduler gives, and takes the step between
two calls from the scheduler:

    LCMScheduler                       x0 plus fresh noise
    DDIMScheduler                      along the ODE
    DDPMScheduler                      ancestral
    FlowMatchEulerDiscreteScheduler    one of the first two, for networks of rectified flow

A scheduler is used only after a trial: on four numbers it has to draw what `Calls.draw` draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models import outside_config, sizes
from dmd.models.denoiser import Denoiser
from dmd.models.preconditioning import NO_SIGNAL, Discrete, Flow
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING

LCM, DDIM, DDPM = "LCMScheduler", "DDIMScheduler", "DDPMScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
LEVEL_FIELDS = (  # of the configuration of a scheduler
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)
PLAIN = {"clip_sample": False, "steps_offset": 1}  # x0 as it is
LAST = {"set_alpha_to_one": True}  # the last step ends at x0, as it always does in DDPMScheduler
SCALING = 1.0e4  # of LCM's timesteps: its c_skip is below 3e-9 and its c_out 1 in float32, from timestep 1 on
SPACINGS = ("trailing", "leading", "linspace")  # of the timesteps of DDIM and DDPM
TOLERANCE = 1e-4  # of the trial; a neighbouring timestep in one step makes 1e-3


def lcm(facts: Mapping[str, Any], original_inference_steps: int | None = None) -> Any:
    """LCMScheduler of a teacher with a table of noise levels.

    Args:
        facts: `preconditioning` and `scheduler` of the teacher's file.
        original_inference_steps: None is the number of the teacher's timesteps.

    Raises:
        ValueError: the teacher has no such table, or a scheduler from which diffusers computes another one.
    """
    steps = original_inference_steps or len((facts.get("preconditioning") or {}).get("alphas_cumprod", ()))
    own = {"original_inference_steps": steps, "timestep_scaling": SCALING} | LAST
    return _of_table(LCM, facts, own)


def ddim(facts: Mapping[str, Any], spacing: str) -> Any:
    """DDIMScheduler of a teacher with a table of noise levels; otherwise as `lcm`."""
    return _of_table(DDIM, facts, {"timestep_spacing": spacing} | LAST)


def ddpm(facts: Mapping[str, Any], spacing: str) -> Any:
    """DDPMScheduler with the variance of the posterior, of a teacher with a table of noise levels; see `lcm`.

    EulerAncestralDiscreteScheduler makes the same steps, but starts at sigma times the noise, not at its 1 / alpha.
    """
    return _of_table(DDPM, facts, {"timestep_spacing": spacing, "variance_type": "fixed_small"})


def flow(facts: Mapping[str, Any], *, renoise: bool, shift: float | None = None, terminal: float | None = None) -> Any:
    """FlowMatchEulerDiscreteScheduler of a teacher of rectified flow.

    Args:
        facts: as for `lcm`.
        renoise: whether fresh noise is added between calls.
        shift: of the times; None is the teacher's.
        terminal: time of the last call; None is the teacher's, or as `shift` gives it.

    Raises:
        ValueError: the teacher is none of rectified flow, or its scheduler has a field that is not understood.
    """
    if not isinstance(_preconditioning(facts), Flow):
        raise ValueError(f"{FLOW} needs a teacher of rectified flow")
    config = facts.get("scheduler") or {}
    outside_config.check("scheduler", config, FLOW)
    own = {"shift": config.get("shift") if shift is None else shift}
    own["shift_terminal"] = config.get("shift_terminal") if terminal is None else terminal
    fields = {key: value for key, value in own.items() if value is not None}
    return _new(FLOW, {**fields, "stochastic_sampling": renoise})


def read_calls(scheduler: Any, facts: Mapping[str, Any], num: int) -> Calls:
    """The calls that a scheduler makes in `num` steps, with a scheduler that a pipeline can make them with.

    That is the given one, or for LCMScheduler the one of `find`.

    Raises:
        ValueError: it makes other than `num` calls, or its steps between them are other ones than those of `Calls`.
    """
    renoises = type(scheduler).__name__ == LCM or scheduler.config.get("stochastic_sampling", False)
    ancestral = type(scheduler).__name__ == DDPM
    between: Any = "noise" if renoises else "ancestral" if ancestral else "ode"
    calls = Calls(_levels(scheduler, facts, num), between=between)
    given = calls if type(scheduler).__name__ == LCM else replace(calls, scheduler=_record(scheduler))
    return replace(calls, scheduler=_record(find(given, facts)))


def find(calls: Calls, facts: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers that makes the calls, with its timesteps set.

    It is the one that the calls name, if they do; else, of class LCMScheduler, the one that refuses most other numbers
    of steps.

    Raises:
        ValueError: no scheduler makes them; the message says which call is the reason.
    """
    if calls.map != "denoiser":
        raise ValueError(f"its map is {calls.map}, and schedulers of diffusers draw with the denoiser itself")
    num, other = len(calls.sigmas), ""
    for candidate in _candidates(calls, facts):
        try:
            found = _levels(candidate, facts, num)
        except ValueError as error:
            other = other or str(error)
            continue
        if not _same(found, calls.sigmas):
            other = other or _difference(candidate, calls, facts, found)
        elif _trial(candidate, calls, facts):
            return candidate
        else:
            other = f"{type(candidate).__name__} has these timesteps, but takes other steps between them"
    raise ValueError(f"no scheduler of diffusers makes its calls: {other}")


def config_of(scheduler: Any) -> dict[str, Any]:
    """The content of its scheduler_config.json, without notes of the library."""
    fields = {key: value for key, value in scheduler.config.items() if key[:1] != "_" and value is not None}
    return {"_class_name": type(scheduler).__name__, **fields}


def accepted_steps(scheduler: Any) -> dict[int, list[float]]:
    """The numbers of steps that a scheduler accepts, up to the teacher's timesteps, each with its timesteps."""
    found = {}
    for num in range(1, scheduler.config.num_train_timesteps + 1):
        try:
            with numpy.errstate(invalid="ignore"):  # of a flow scheduler with shift_terminal and one step: 0 / 0
                scheduler.set_timesteps(num)
        except Exception:  # diffusers raises what numpy and Python raise
            continue
        found[num] = [float(time) for time in scheduler.timesteps]
    return found


def _candidates(calls: Calls, facts: Mapping[str, Any]) -> Iterator[Any]:
    """Schedulers that may make the calls."""
    num, levels = len(calls.sigmas), _preconditioning(facts)
    if calls.scheduler is not None:
        yield _new(calls.scheduler["class"], calls.scheduler["config"])
    elif isinstance(levels, Flow):
        if calls.between == "ancestral" and num > 1:
            raise ValueError(f"no scheduler of diffusers makes its calls: {FLOW} takes no ancestral steps")
        last = calls.sigmas[-1] / (1 + calls.sigmas[-1])
        for shift, terminal in ((None, None), (1.0, None), *([(1.0, last)] if num > 1 else [])):
            yield flow(facts, renoise=calls.between == "noise", shift=shift, terminal=terminal)
    elif calls.between != "noise" and num > 1:
        _timesteps(calls.sigmas, levels)
        make = ddim if calls.between == "ode" else ddpm
        yield from (make(facts, spacing) for spacing in SPACINGS)
    else:
        wanted = _timesteps(calls.sigmas, levels)
        yield lcm(facts, _original_steps(lcm(facts), wanted))


def _original_steps(scheduler: Any, wanted: Sequence[int]) -> int:
    """The least `original_inference_steps` with which LCM's timesteps are `wanted`, or agree in most calls."""
    best, agree = len(wanted), -1
    for steps in range(len(wanted), scheduler.config.num_train_timesteps + 1):
        scheduler.set_timesteps(len(wanted), original_inference_steps=steps)
        same = sum(mine == theirs for mine, theirs in zip(scheduler.timesteps.tolist(), wanted, strict=True))
        if same > agree:
            best, agree = steps, same
    return best


def _timesteps(sigmas: Sequence[float], levels: Discrete) -> list[int]:
    """The teacher's timestep of each level; ValueError for a level between two timesteps, or outside of them."""
    table = _table(levels)
    found = []
    for number, sigma in enumerate(sigmas, start=1):
        index = int((table.log() - torch.tensor(sigma, dtype=torch.float64).log()).abs().argmin())
        if abs(float(table[index]) / sigma - 1) > ROUNDING:
            raise ValueError(
                f"call {number} of {len(sigmas)} is at sigma {sigma:.6g}, between two timesteps: the nearest, "
                f"{index}, has {float(table[index]):.6g}. Schedulers of diffusers call the network at timesteps only"
            )
        found.append(index)
    return found


def _difference(candidate: Any, calls: Calls, facts: Mapping[str, Any], found: Sequence[float]) -> str:
    """The first call that a scheduler makes at another level."""
    number = next(index for index, pair in enumerate(zip(found, calls.sigmas, strict=True)) if not _same(*zip(pair)))
    times = [f"{float(time):g}" for time in candidate.timesteps]
    sigma, levels = calls.sigmas[number], _preconditioning(facts)
    own = 1000 * sigma / (1 + sigma) if isinstance(levels, Flow) else _timesteps([sigma], levels)[0]
    return (
        f"call {number + 1} of {len(found)} is at timestep {own:g} (sigma {sigma:.6g}), but the nearest "
        f"{type(candidate).__name__} calls at timesteps {', '.join(times)}"
    )


def _levels(scheduler: Any, facts: Mapping[str, Any], num: int) -> tuple[float, ...]:
    """The noise levels of a scheduler's calls in `num` steps."""
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(num)
    except Exception as error:  # as in `accepted_steps`
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200].rstrip()
        raise ValueError(f"{name} cannot make {num} steps: {reason}") from error
    levels, times = _preconditioning(facts), scheduler.timesteps.double()
    if isinstance(levels, Flow):
        times = times / 1000
        sigmas = torch.where(times < 1, times / (1 - times), NO_SIGNAL).clamp(max=NO_SIGNAL)  # 1 may be rounded up
    else:
        sigmas = _table(levels)[times.long()]
    if len(sigmas) != num or not bool(sigmas.isfinite().all()):
        raise ValueError(f"{name} makes {len(sigmas)} calls in {num} steps, at timesteps {times.tolist()!r:.100}")
    return tuple(sigmas.tolist())


def _same(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    return all(abs(one / other - 1) <= ROUNDING for one, other in zip(mine, theirs, strict=True))


class _Fixed(nn.Module):
    """A network for the trial. Its output is the same in all calls: another one would multiply rounding errors."""

    def forward(self, image: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        return image.new_tensor([0.3, -0.7, 1.1, -0.2]).reshape(image.shape)


def _trial(scheduler: Any, calls: Calls, facts: Mapping[str, Any]) -> bool:
    """Whether scheduler and calls draw the same four numbers."""
    denoiser = Denoiser(_Fixed(), sigma_data=1.0, preconditioning=facts["preconditioning"])
    noise, label = torch.tensor([-1.0, -0.5, 0.5, 1.0]).reshape(1, 1, 2, 2), torch.tensor([-1])
    mine, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    expected = calls.draw(denoiser, noise, label, lambda number: torch.randn(noise.shape, generator=mine))
    image = noise
    for time in scheduler.timesteps:
        out = denoiser.predict(image, time.reshape(1).float(), label)
        image = scheduler.step(out, time, image, generator=theirs).prev_sample
    return bool(((image - expected).abs() <= TOLERANCE * (1 + expected.abs())).all())


def _of_table(name: str, facts: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A scheduler with the noise levels of the teacher's table."""
    levels, config = _preconditioning(facts), facts.get("scheduler")
    if not isinstance(levels, Discrete) or not isinstance(config, Mapping):
        raise ValueError(f"{name} needs a teacher with timesteps, that comes with a scheduler")
    sizes.check("scheduler", config)
    defaults = outside_config.library_defaults(config.get("_class_name") or DDIM)  # its class reads what is missing so
    fields = {key: config.get(key, defaults.get(key, (None,))[0]) for key in LEVEL_FIELDS}
    scheduler = _new(name, {key: value for key, value in fields.items() if value is not None} | PLAIN | dict(own))
    squares = scheduler.alphas_cumprod.double()
    sigmas = ((1 - squares) / squares).sqrt().clamp(max=NO_SIGNAL)
    table = _table(levels)
    if len(sigmas) != len(table) or not torch.allclose(sigmas, table, rtol=ROUNDING, atol=0):
        raise ValueError(f"{name} computes other noise levels from the teacher's scheduler than the teacher's file has")
    return scheduler


def _new(name: str, config: Mapping[str, Any]) -> Any:
    torchvision_operators.ensure()
    import diffusers

    if name not in (LCM, DDIM, DDPM, FLOW):
        raise ValueError(f"scheduler {name!r:.80} is none of {LCM}, {DDIM}, {DDPM}, {FLOW}")
    fields = {key: value for key, value in config.items() if key[:1] != "_"}
    with sizes.making("scheduler", fields):
        return getattr(diffusers, name).from_config(fields)


def _record(scheduler: Any) -> dict[str, Any]:
    """A scheduler whose timesteps are set, as `Calls.scheduler` has it."""
    config = {key: value for key, value in config_of(scheduler).items() if key[:1] != "_"}
    timesteps = [float(time) for time in scheduler.timesteps]
    return {"class": type(scheduler).__name__, "config": config, "timesteps": timesteps}


def _preconditioning(facts: Mapping[str, Any]) -> Any:
    """Discrete or Flow; ValueError for another kind."""
    section = facts.get("preconditioning") or {"kind": "edm"}
    if section.get("kind") == "discrete":
        return Discrete(section["alphas_cumprod"], prediction=section["prediction"])
    if section.get("kind") == "flow":
        return Flow(**{key: value for key, value in section.items() if key != "kind"})
    raise ValueError(
        f"its preconditioning is {section.get('kind')!r:.40}: diffusers' schedulers need timesteps or flow"
    )


def _table(levels: Discrete) -> Tensor:
    """Sigma of each timestep, ascending, float64."""
    assert levels.table is not None
    return levels.table[1]
