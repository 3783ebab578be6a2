"""Solvers on the network's own prediction type and timesteps: diffusers' schedulers, and rectified flow.

With the same scheduler, noise and text they give the same latents as diffusers' pipeline.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dmd import torchvision_operators
from dmd.models import outside_config, sizes
from dmd.models.denoiser import Denoiser
from dmd.models.outside_config import ZERO_SNR
from dmd.models.preconditioning import Flow

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of diffusers, its arguments
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun-discrete": ("HeunDiscreteScheduler", {}),
    "euler-discrete": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
FLOW = "rectified-flow"
NO_FLOW = (
    f"solver {FLOW!r} needs a teacher whose network predicts a velocity (preconditioning flow), as that of a "
    "RectifiedFlowPipeline does"
)
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (scaled image, timestep) -> the network's output
NAMES = (*CLASSES, FLOW)


def scheduler(config: Mapping[str, Any] | None, solver: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers that `solver` names, with its timesteps set.

    Args:
        config: configuration of the scheduler in the network's folder.
        solver: `name` from `CLASSES`, `steps`, and `spacing` of the timesteps (leading, trailing, linspace; None or
            absent: that of `config`, else the scheduler's default).

    Raises:
        ValueError: no config, or steps or a spacing that the scheduler cannot take.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"solver {solver['name']!r} needs a teacher that comes with a scheduler: use heun or euler")
    sizes.check("scheduler", config)
    if config.get(ZERO_SNR) and ZERO_SNR not in outside_config.library_defaults(CLASSES[solver["name"]][0]):
        able = [name for name, (kind, _) in CLASSES.items() if ZERO_SNR in outside_config.library_defaults(kind)]
        raise ValueError(
            f"solver {solver['name']!r} would ignore {ZERO_SNR} of the teacher's scheduler: use {', '.join(able)}, "
            "or heun or euler"
        )
    arguments = CLASSES[solver["name"]][1]
    spacing = {"timestep_spacing": solver["spacing"]} if solver.get("spacing") else {}
    try:
        result = _class(solver).from_config(dict(config), **arguments, **spacing)
        result.set_timesteps(solver["steps"])
    except Exception as error:  # diffusers raises what numpy, scipy and Python raise
        raise ValueError(_refusal(config, solver, f"{type(error).__name__} {error}")) from error
    return result


def check(facts: Mapping[str, Any], solver: Mapping[str, Any]) -> None:
    """Tries all steps of a solver on four numbers, so that what its scheduler cannot do is known before any work.

    The prediction of the tried steps is always the noise that they begin with.

    Args:
        facts: of the teacher's file, of which `scheduler` and `preconditioning` are read.
        solver: as for `scheduler`; one that is none of `NAMES` needs no check.

    Raises:
        ValueError: a step fails or gives numbers that are not finite; the message names the solver, its steps, and the
            fields of the scheduler that are not at their defaults. Or solver rectified-flow, and the teacher is no
            rectified flow.
    """
    config = facts.get("scheduler")
    if solver["name"] == FLOW and (facts.get("preconditioning") or {}).get("kind") != "flow":
        raise ValueError(NO_FLOW)
    if solver["name"] not in CLASSES:
        return
    stepper = scheduler(config, solver)
    noise = torch.tensor([-1.0, -0.5, 0.5, 1.0]).reshape(1, 1, 2, 2)
    try:
        image = _steps(stepper, noise, solver, lambda image, time: noise)
    except Exception as error:  # as above
        raise ValueError(_refusal(config, solver, f"{type(error).__name__} {error}")) from error
    if not image.isfinite().all():
        raise ValueError(_refusal(config, solver, "its numbers are not finite"))


def _class(solver: Mapping[str, Any]) -> Any:
    torchvision_operators.ensure()
    import diffusers

    return getattr(diffusers, CLASSES[solver["name"]][0])


def _refusal(config: Mapping[str, Any] | None, solver: Mapping[str, Any], reason: str) -> str:
    """A line that says why a scheduler cannot be used, and which of its fields may be the reason."""
    defaults = {name: each.default for name, each in inspect.signature(_class(solver)).parameters.items()}
    changed = [
        f"{key} {value!r:.60}" for key, value in (config or {}).items() if key in defaults and value != defaults[key]
    ]
    return (
        f"solver {solver['name']!r} with {solver['steps']} steps cannot be used with the teacher's scheduler: "
        f"{' '.join(reason.split())[:200].rstrip()}. Fields of its scheduler_config.json that are not at the defaults "
        f"of {CLASSES[solver['name']][0]}: {', '.join(changed) or 'none'}. Change steps, spacing or solver"
    )


def first_timestep(config: Mapping[str, Any] | None, solver: Mapping[str, Any]) -> float:
    """The timestep of the first network call: 999 for the highest noise level, 981 for PNDM in 50 steps."""
    return 1000.0 if solver["name"] == FLOW else float(scheduler(config, solver).timesteps[0])


@torch.no_grad()
def draw(
    denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, solver: Mapping[str, Any]
) -> tuple[torch.Tensor, int]:
    """Images from unit noise by a scheduler, from the network's own predictions, guided if the denoiser is.

    Args:
        denoiser: its network has the prediction type of `denoiser.scheduler`, or preconditioning flow.
        noise: unit variance, (B, C, H, W).
        label: int64 (B,), or text states (B, L, E).
        solver: see `scheduler`; or {"name": "rectified-flow", "steps"} (Liu et al. 2023, InstaFlow).

    Returns:
        Images in the dtype of `noise`, and the number of network calls made.

    Raises:
        ValueError: the denoiser has no network, or neither the scheduler nor the preconditioning that the solver needs.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"solver {solver['name']!r} needs a denoiser with a network, not {type(denoiser).__name__}")
    if solver["name"] == FLOW:
        return _flow(denoiser, noise, label, solver["steps"]), solver["steps"]
    stepper = scheduler(denoiser.scheduler, solver)
    stepper.set_timesteps(solver["steps"], device=noise.device)
    image = _steps(stepper, noise, solver, lambda image, time: denoiser.predict(image, _times(time, noise), label))
    return image.to(noise.dtype), len(stepper.timesteps)


def _steps(stepper: Any, noise: torch.Tensor, solver: Mapping[str, Any], predict: Predict) -> torch.Tensor:
    """The image after all steps of a scheduler whose timesteps are set."""
    # LCM draws noise in each step: a generator seeded from the sample's start noise makes it reproducible
    extra = {"generator": _generators(noise)} if solver["name"] == "lcm" else {}
    image = noise * stepper.init_noise_sigma
    for time in stepper.timesteps:
        out = predict(stepper.scale_model_input(image, time), time)
        image = stepper.step(out, time, image, **extra).prev_sample
    return image


def _flow(denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler steps along the straight line from noise at timestep 1000 to the image at timestep 0."""
    if not isinstance(denoiser.preconditioning, Flow):
        raise ValueError(NO_FLOW)
    image = noise
    for step in range(steps):
        velocity = denoiser.predict(image, _times(1000.0 * (1 - step / steps), noise), label)
        image = image - denoiser.preconditioning.sign / steps * velocity
    return image


def _times(time: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((len(like),), float(time), device=like.device)


def _generators(noise: torch.Tensor) -> list[torch.Generator]:
    """A CPU generator per sample; its seed is a digest of the sample's noise."""
    digests = (hashlib.sha256(sample.float().cpu().numpy().tobytes()).digest() for sample in noise)
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4])) for digest in digests]
