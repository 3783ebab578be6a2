"""Section `method` of TRACT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.keys import X0Weighting
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Decay, Many, Rho, Sigma, Steps, refuse


class TractPhase(Phase):
    """A phase of TRACT: a step of the student replaces all steps of the teacher within a group of levels."""

    groups: Steps = Field(description="groups of levels, which are the student's calls; levels / groups is whole")


class Tract(MethodSection):
    """TRACT (Berthelot et al. 2023).

    The defaults are those of the paper for CIFAR-10 with an EDM teacher, where `ema_decay` is 0.99996.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 1.0e-3, "weight_decay": 0.0}}
    schedule_defaults = {"warmup": 0}
    streams = frozenset({"images"})
    name: Literal["tract"]
    levels: Annotated[Steps, Field(ge=2)] = Field(
        40,
        description="levels above 0 in the first phase; a later phase has those where groups of the one before begin",
    )
    sigma_max: Sigma | None = Field(80.0, description="highest level; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"lowest level above 0; {LOWEST}")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    solver: Literal["heun", "euler"] = Field(
        "heun", description="the teacher's step in the first phase; in later ones the teacher knows only Euler's"
    )
    weighting: X0Weighting = "network"
    target_decay: Decay = Field(0.5, description="decay of the self-teacher, a moving average of the student")
    clip: bool = Field(True, description="limit the self-teacher's x0 to [-1, 1], the range of images")
    batch_size: Batch = Field(512, description="images")
    phases: Annotated[Many[TractPhase], Field(min_length=1)] = (TractPhase(groups=1, updates=187500),)

    @model_validator(mode="after")
    def _fits(self) -> Tract:
        check_order(self.sigma_min, self.sigma_max)
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        before = self.levels
        for index, phase in enumerate(self.phases):
            if before % phase.groups or before == phase.groups:
                groups = f"{phase.groups} equal groups of several levels"
                yield f"phases[{index}].groups: {before} levels do not make {groups}"
            before = phase.groups

    def final_calls(self) -> int:
        """Groups of the last phase."""
        return self.phases[-1].groups

    def roles(self) -> dict[str, Role]:
        """Teacher, which is the averaged student of the phase before in later phases, student and self-teacher."""
        teacher = Mode.FROZEN if len(self.phases) == 1 else Mode.COPIED
        return {
            TEACHER: Role(Source.TEACHER, teacher),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "target": Role(Source.STUDENT, Mode.COPIED),
        }
