"""Section `method` of the training of an autoencoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dmd.config.method_base import DENOISER_SWITCHES, STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import Batch, Many, Weight


class Autoencoding(MethodSection):
    """Reconstruction by an AutoencoderKL: absolute error, and the KL divergence of latents from unit noise."""

    refuses = tuple(switch for switch in DENOISER_SWITCHES if switch != "dtype")
    streams = frozenset({"images"})
    name: Literal["autoencoding"]
    batch_size: Batch = Field(description="images")
    kl_weight: Weight = Field(1.0e-6, description="of the KL divergence, summed over a latent, per value of the image")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student: the autoencoder."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}
