"""Section `method` of a generative adversarial network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import Batch, Integer, LogMean, LogStd, Many, Sigma, Weight


class GanPhase(Phase):
    """A phase of a GAN."""

    discriminator_updates: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        1, description="updates of the discriminator per update of the student"
    )


class Gan(MethodSection):
    """A conditional GAN (Goodfellow et al. 2014) of the teacher's architecture, whose images are judged with noise."""

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        role: {"learning_rate": 1.0e-4, "betas": (0.0, 0.99), "weight_decay": 0.0}
        for role in (STUDENT, "discriminator", "head")
    }
    refuses: ClassVar[tuple[str, ...]] = ("shard_parameters",)  # the discriminator makes passes of half a network
    name: Literal["gan"]
    sigma: Sigma = Field(80.0, description="noise level of the student's input")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma) of the noise that images are judged with")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma)")
    r1: Weight = Field(1.0, description="weight of the squared gradient of the logits of real images; 0 = off")
    r1_every: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        16, description="the penalty is taken in every r1_every-th update only, times this number"
    )
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[GanPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Gan:
        if not self.r1 and self.r1_every != type(self).model_fields["r1_every"].default:
            raise ValueError(f"r1_every: {self.r1_every}, but r1 is 0")
        return self

    def roles(self) -> dict[str, Role]:
        """The student, the discriminator, which begins as the teacher, and the head that makes logits."""
        return {
            STUDENT: Role(Source.START, Mode.TRAINED),
            "discriminator": Role(Source.START, Mode.TRAINED),
            "head": Role(Source.NEW, Mode.TRAINED),
        }

    def reads(self) -> frozenset[str]:
        """Images."""
        return frozenset({"images"})
