"""Section `method` of BOOT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Guidance, Many, Rho, Scale, Sigma, Steps


class Boot(MethodSection):
    """BOOT (Gu et al. 2023): the student gives the signal at any level of the teacher's path from noise alone."""

    name: Literal["boot"]
    levels: Annotated[Steps, Field(ge=2)] = Field(description="number of levels; each step leads to the next lower one")
    sigma_max: Sigma | None = Field(80.0, description="level of the noise; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"level whose signal is the image; {LOWEST}")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    solver: Literal["euler", "heun"] = Field("euler", description="of a step of the teacher")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    boundary_weight: Scale = Field(description="weight of the loss at sigma_max")
    batch_size: Batch = Field(64, description="noises in the loss of steps")
    boundary_batch_size: Batch = Field(64, description="noises in the loss at sigma_max")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Boot:
        check_order(self.sigma_min, self.sigma_max)
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher and student."""
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance),
            STUDENT: Role(Source.START, Mode.TRAINED),
        }

    def batch_sizes(self) -> dict[str, int]:
        """Those of both losses."""
        return {"batch_size": self.batch_size, "boundary_batch_size": self.boundary_batch_size}
