"""Noise levels of the calls of a student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dmd.config.methods.levels import check_order
from dmd.config.section_base import Integer, Many, Rho, Section, Sigma


def _descending(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    if any(later >= sigma for sigma, later in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError(f"{list(sigmas)} do not descend")
    return sigmas


CallLevels = Annotated[Many[Sigma], Field(min_length=1, max_length=64), AfterValidator(_descending)]


class KarrasTimes(Section):
    """Noise levels of the calls, evenly spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5)."""

    kind: Literal["karras"]
    sigma_min: Sigma = Field(0.4, description="level of the last call, if there are several")
    sigma_max: Sigma | None = Field(80.0, description="level of the first call; null = the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")

    @model_validator(mode="after")
    def _range(self) -> KarrasTimes:
        check_order(self.sigma_min, self.sigma_max)
        return self


class ListedTimes(Section):
    """Noise levels of the calls, as listed."""

    kind: Literal["listed"]
    sigmas: CallLevels = Field(description="descending, one per call")


class LcmTimes(Section):
    """LCMScheduler with the teacher's noise levels: `set_timesteps(calls)`, and fresh noise between them."""

    kind: Literal["lcm"]
    original_inference_steps: Annotated[Integer, Field(ge=1, le=10**4)] | None = Field(
        None,
        description="of LCMScheduler; null = the teacher's number of timesteps. For 4 calls of Stable Diffusion, null "
        "gives timesteps 999, 749, 499, 249; 50, which is LCMScheduler's default, gives 999, 759, 499, 259",
    )


class FlowEulerTimes(Section):
    """The calls of FlowMatchEulerDiscreteScheduler for a teacher of rectified flow: `set_timesteps(calls)`."""

    kind: Literal["flow-match-euler"]
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = Field(None, description="of times; null = the teacher's")
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="time of the last call: without it several calls end near 0, at noise of almost nothing"
    )


def check_times(times: Section, calls: int) -> None:
    """ValueError if these times cannot be those of so many calls."""
    if isinstance(times, ListedTimes) and len(times.sigmas) != calls:
        raise ValueError(f"times.sigmas: {len(times.sigmas)} noise levels for calls {calls}")
    if isinstance(times, LcmTimes) and (most := times.original_inference_steps or 64) < calls:
        raise ValueError(f"times.original_inference_steps: {most} for calls {calls}: LCMScheduler needs as many")
    if isinstance(times, FlowEulerTimes) and times.shift_terminal and calls == 1:
        raise ValueError("times.shift_terminal: it is the time of the last of several calls, but calls is 1")
