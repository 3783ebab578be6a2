"""Section `method` of Inductive Moment Matching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import CallLevels
from dmd.config.methods.keys import Dropout
from dmd.config.section_base import Batch, Integer, Many, Sigma, Weight


class Imm(MethodSection):
    """Inductive Moment Matching (Zhou et al. 2025): groups of images that arrive from two levels are to be alike."""

    optimiser_defaults = {STUDENT: {"learning_rate": 1.0e-4, "weight_decay": 0.0}}
    refuses = ("adapter",)  # the base network that adapters share has no second time
    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["imm"]
    particles: Annotated[Integer, Field(ge=1, le=1024)] = Field(
        4, description="images in a group, which share their levels; with 1 or 2 trainings have collapsed"
    )
    calls: CallLevels = Field(
        (80.0,),
        description="noise levels of the student's calls, the first the highest of the losses; sample.calls: n: the "
        "first n",
    )
    sigma_min: Sigma = Field(0.003, description="lowest level of the losses: the paper's time 0.006 for sigma_data 0.5")
    k: Annotated[Integer, Field(ge=0, le=20)] = Field(
        12, description="of the gap (calls[0] - sigma_min) / 2^k between the two levels"
    )
    a: Weight = Field(1.0, description="exponent of alpha in the weight of a level")
    b: Annotated[float, Field(ge=-100, le=100)] = Field(4.0, description="of sigmoid(b - log-SNR) in that weight")
    dropout: Dropout = False
    batch_size: Batch = Field(1024, description="groups of `particles` images")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Imm:
        if self.sigma_min >= self.calls[-1]:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below the last of calls, {self.calls[-1]:g}")
        return self

    @property
    def version(self) -> int:
        """2: the flow time is that of noise in units of sigma_data."""
        return 2

    def roles(self) -> dict[str, Role]:
        """The student alone, whose network gets a second time, and which is its own target."""
        return {STUDENT: Role(Source.START, Mode.TRAINED, second_time=True)}
