"""The calls of a student whose noise levels the configuration gives, or a scheduler of diffusers."""

from __future__ import annotations

from typing import Literal

from dmd.config.methods.call_times import FlowEulerTimes, KarrasTimes, LcmTimes, ListedTimes
from dmd.methods.base import Facts
from dmd.models.student_calls import Calls
from dmd.sampling import call_schedulers
from dmd.sampling.noise import karras_sigmas

Times = KarrasTimes | ListedTimes | LcmTimes | FlowEulerTimes
Between = Literal["noise", "ode", "ancestral"]
KEY = "distill.method.times"


def calls_at(times: Times, num: int, facts: Facts, *, between: Between = "noise") -> Calls:
    """The calls of a section `times`.

    Args:
        times: the section.
        num: number of calls.
        facts: of the denoiser to start from: `sigma_max`, `preconditioning` and `scheduler`.
        between: step between two calls.

    Raises:
        ValueError: a level is not known, or the scheduler cannot make these calls with this denoiser.
    """
    if isinstance(times, ListedTimes):
        return Calls(times.sigmas, between)
    if isinstance(times, KarrasTimes):
        return Calls(_karras(times, num, facts), between)
    levels = {"preconditioning": facts.preconditioning, "scheduler": facts.scheduler}
    try:
        if isinstance(times, LcmTimes):
            scheduler = call_schedulers.lcm(levels, times.original_inference_steps)
        else:
            renoise = between == "noise"
            scheduler = call_schedulers.flow(levels, renoise=renoise, shift=times.shift, terminal=times.shift_terminal)
        return call_schedulers.read_calls(scheduler, levels, num)
    except ValueError as error:
        calls = "1 call" if num == 1 else f"{num} calls"
        raise ValueError(f"{KEY}: {times.kind} cannot make {calls} with this teacher: {error}") from error


def _karras(times: KarrasTimes, num: int, facts: Facts) -> tuple[float, ...]:
    top = facts.highest(times.sigma_max, key=f"{KEY}.sigma_max")
    if times.sigma_min >= top:
        raise ValueError(
            f"{KEY}.sigma_min: {times.sigma_min:g} is not below {top:.6g}, the highest noise level of the denoiser to "
            "start from"
        )
    found = karras_sigmas(num, sigma_min=times.sigma_min, sigma_max=top, rho=times.rho).tolist()
    return (top, *found[1:])
