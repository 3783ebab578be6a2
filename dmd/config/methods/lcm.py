"""Section `method` of latent consistency models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import KarrasTimes, LcmTimes, ListedTimes, check_times
from dmd.config.methods.guidance import Data, GuidanceRange
from dmd.config.methods.levels import KarrasRange
from dmd.config.section_base import Batch, Decay, Integer, Many, Scale, Section, Steps


class TableSteps(Section):
    """Timesteps of the teacher: the last one, every `skip`-th one before it, and 0."""

    kind: Literal["teacher"]
    skip: Steps = Field(20, description="timesteps from one level to the next, k")


class KarrasSteps(KarrasRange):
    """Noise levels of Karras et al. 2022, Eq. 5, for teachers without timesteps."""

    kind: Literal["karras"]
    count: Annotated[Steps, Field(ge=2)] = Field(51, description="number of levels")


class Lcm(MethodSection):
    """Latent consistency models (Luo et al. 2023), and LCM-LoRA: with `distill.adapter` and `embedded: false`.

    The defaults of levels, guidance, target and optimiser are those of the authors' script, that of the loss is the one
    which its README takes, with a learning rate of 1e-6 and without weight decay.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 1.0e-4, "gradient_clip": 1.0}}
    keeps_first_calls = True
    name: Literal["lcm"]
    data: Data = "images"
    levels: Annotated[TableSteps | KarrasSteps, Field(discriminator="kind")] = Field(
        TableSteps(kind="teacher"), description="noise levels, of which two neighbours are compared"
    )
    guidance: GuidanceRange = Field(
        GuidanceRange(lowest=6.0, highest=16.0), description="of the teacher, drawn for each image; omega = w - 1"
    )
    embedded: bool = Field(
        True,
        description="the student's network gets the guidance as an input, and sample.guidance chooses it; false: the "
        "student learns the mean over the range, as adapters do",
    )
    huber: Scale | None = Field(
        1.0e-3, description="c of the loss (e^2 + c^2)^1/2 - c of each value; null = squared error"
    )
    target_decay: Decay = Field(
        0.95, description="EMA decay of the target network; 0 = the target is the student, without gradient"
    )
    calls: Annotated[Integer, Field(ge=1, le=64)] = Field(
        4,
        description="network calls of the student; sample.calls: n makes n calls, at the levels of times for n",
    )
    times: Annotated[LcmTimes | KarrasTimes | ListedTimes, Field(discriminator="kind")] = Field(
        LcmTimes(kind="lcm", original_inference_steps=50), description="noise levels of the calls, as in method dmd2"
    )
    batch_size: Batch = Field(96, description="images")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Lcm:
        check_times(self.times, self.calls)
        if isinstance(self.times, LcmTimes) and isinstance(self.levels, KarrasSteps):
            raise ValueError("times.kind: lcm has the teacher's timesteps, but levels has kind karras")
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher, student, and a target network (with a decay)."""
        middle = self.guidance.middle
        own = middle if self.embedded else 1.0
        target = {"target": Role(Source.STUDENT, Mode.COPIED, guidance=own, guidance_input=self.embedded)}
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=middle),
            STUDENT: Role(Source.START, Mode.TRAINED, guidance=own, guidance_input=self.embedded),
            **(target if self.target_decay else {}),
        }

    def guidance_range(self) -> tuple[float, float]:
        """Of section `guidance`."""
        return self.guidance.both

    def reads(self) -> frozenset[str]:
        """`data`."""
        return frozenset({self.data})
