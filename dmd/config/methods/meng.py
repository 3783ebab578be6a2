"""Section `method` of the distillation of a guided teacher into one network (Meng et al.)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.guidance import Data, GuidanceRange
from dmd.config.methods.keys import X0Weighting
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Many, Rho, Sigma, Steps


class Meng(MethodSection):
    """Distillation of a guided teacher into a network that takes the guidance as an input (Meng et al. 2022, stage 1).

    Its student is a denoiser at all noise levels. Stage 2 is method progressive with that student as teacher.
    """

    optimiser_defaults = {STUDENT: {"weight_decay": 0.0, "gradient_clip": 1.0}}
    name: Literal["meng"]
    data: Data = "images"
    guidance: GuidanceRange = Field(
        GuidanceRange(lowest=1.0, highest=5.0), description="of the teacher, drawn for each image"
    )
    sigma_max: Sigma | None = Field(80.0, description="highest level; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"lowest level; {LOWEST}")
    weighting: X0Weighting = "truncated-snr"
    calls: Steps = Field(32, description="network calls with which the student is sampled, DDIM steps")
    rho: Rho = Field(7.0, description="of the calls (Karras et al. 2022, Eq. 5): larger means denser near sigma_min")
    batch_size: Batch = Field(128, description="images")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Meng:
        check_order(self.sigma_min, self.sigma_max)
        return self

    @property
    def denoises(self) -> bool:
        """True."""
        return True

    def roles(self) -> dict[str, Role]:
        """Teacher, and the student, whose network gets the guidance as an input."""
        middle = self.guidance.middle
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=middle),
            STUDENT: Role(Source.START, Mode.TRAINED, guidance=middle, guidance_input=True),
        }

    def guidance_range(self) -> tuple[float, float]:
        """Of section `guidance`."""
        return self.guidance.both

    def reads(self) -> frozenset[str]:
        """`data`."""
        return frozenset({self.data})
