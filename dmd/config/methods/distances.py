"""Distances of images in losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dmd.config.section_base import UNSET_PATH, Path, Pinned, Section, Side

Decoder = Literal["none", "tiny", "full"]
DECODER = "decodes latents before the distance: the tiny or the full autoencoder of the teacher, or none"


class L2Distance(Section):
    """Mean squared error."""

    kind: Literal["l2"]
    decoder: Decoder = Field("none", description=DECODER)


class L1Distance(Section):
    """Mean absolute error."""

    kind: Literal["l1"]
    decoder: Decoder = Field("none", description=DECODER)


class LpipsDistance(Section):
    """LPIPS on VGG16 features (Zhang et al. 2018)."""

    kind: Literal["lpips"]
    file: Path = Field(UNSET_PATH, description="weights of torchvision's VGG16")
    sha256: Pinned = None
    pooling: Literal["average", "max"] = Field(
        "average", description="average: as in DMD's official code; max: as LPIPS was published"
    )
    size: Annotated[Side, Field(ge=16, description="side in pixels that images are resized to")] = 224
    decoder: Decoder = Field("none", description=DECODER)


Distance = Annotated[L2Distance | L1Distance | LpipsDistance, Field(discriminator="kind")]
