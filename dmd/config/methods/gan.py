"""Section `method` of a generative adversarial network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.methods.adversarial import Discriminated, DiscriminatorPhase
from dmd.config.section_base import Batch, Integer, LogMean, LogStd, Many, Sigma, Weight


class Gan(Discriminated):
    """A conditional GAN (Goodfellow et al. 2014) of the teacher's architecture, whose images are judged with noise."""

    name: Literal["gan"]
    sigma: Sigma = Field(80.0, description="noise level of the student's input")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma) of the noise that images are judged with")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma)")
    r1: Weight = Field(1.0, description="weight of the squared gradient of the logits of real images; 0 = off")
    r1_every: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        16, description="the penalty is taken in every r1_every-th update only, times this number"
    )
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[DiscriminatorPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Gan:
        if not self.r1 and self.r1_every != type(self).model_fields["r1_every"].default:
            raise ValueError(f"r1_every: {self.r1_every}, but r1 is 0")
        return self
