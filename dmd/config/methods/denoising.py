"""Section `method` of the training of a denoiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import Batch, Decay, LogMean, LogStd, Many


class Denoising(MethodSection):
    """EDM's objective (Karras et al. 2022, Table 1), which trains a teacher on images."""

    streams = frozenset({"images"})
    name: Literal["denoising"]
    batch_size: Batch = Field(description="images")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma)")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma)")
    levels: Literal["log-normal", "table"] = Field(
        "log-normal", description="table: uniformly among the network's discrete noise levels, as Stable Diffusion"
    )
    label_dropout: Decay = Field(
        0.0, description="fraction of images trained without their label or caption, for guidance"
    )
    phases: Annotated[Many[Phase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student, which becomes the teacher of other trainings."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}
