"""Section `method` of the training of a CLIP."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dmd.config.method_base import DENOISER_SWITCHES, STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import Integer, Many


class Contrastive(MethodSection):
    """Contrast of images and captions within a batch (Radford et al. 2021), which is one pass on one process."""

    refuses = (*DENOISER_SWITCHES, "micro_batch_size", "processes")
    streams = frozenset({"images"})
    name: Literal["contrastive"]
    batch_size: Annotated[Integer, Field(ge=2, le=10**5)] = Field(description="images, each with one caption")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student: a CLIP."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}
