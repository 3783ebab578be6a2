"""Section `method` of progressive distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, WEIGHTS, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.keys import X0Weighting
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Many, Rho, Sigma, Steps


class ProgressivePhase(Phase):
    """A round: one step of the student replaces two steps of its teacher."""

    steps: Steps = Field(description="network calls of the student: half of the previous round's")
    fresh_optimiser: bool = Field(True, description="clear the student's Adam moments first")
    fresh_average: bool = Field(True, description="restart the student's moving average")


class Progressive(MethodSection):
    """Progressive distillation (Salimans and Ho 2022). The learning rate falls to 0 within each round."""

    optimiser_defaults = {STUDENT: {"weight_decay": 0.0, "gradient_clip": 1.0}}
    schedule_defaults = {"over": "phase", "decay": "linear", "warmup": 0}
    keeps_guidance = True
    streams = frozenset({"images"})
    name: Literal["progressive"]
    batch_size: Batch = Field(128, description="images")
    sigma_max: Sigma | None = Field(80.0, description="highest level, in all rounds; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"lowest level above 0 of the first teacher; {LOWEST}")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    weighting: X0Weighting = "truncated-snr"
    next_teacher: Literal["raw", "averaged"] = Field(
        "raw", description="the student's weights that initialise teacher and student of the next round"
    )
    keep: Many[Steps] = Field((), description="calls of earlier rounds whose students are kept in the file, too")
    phases: Annotated[Many[ProgressivePhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _halves(self) -> Progressive:
        check_order(self.sigma_min, self.sigma_max)
        steps = [phase.steps for phase in self.phases]
        for before, after in zip(steps, steps[1:], strict=False):
            if 2 * after != before:
                raise ValueError(f"phases: steps {after} is not half of the {before} of the round before")
        if odd := sorted(set(self.keep) - set(steps)):
            raise ValueError(f"keep: no round has {odd[0]} steps; there are {steps}")
        return self

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Averaged weights of the rounds in `keep`, and all weights of the last round."""
        return {number: ("ema",) for number in self.keep} | {self.final_calls(): WEIGHTS}

    def final_calls(self) -> int:
        """Steps of the last round."""
        return self.phases[-1].steps

    def roles(self) -> dict[str, Role]:
        """The student, and its teacher: the file's in the first round, then the student of the round before."""
        return {TEACHER: Role(Source.TEACHER, Mode.COPIED), STUDENT: Role(Source.START, Mode.TRAINED)}
