"""Section `method` of UFOGen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.methods.adversarial import Discriminated, DiscriminatorPhase
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Many, Rho, Sigma, Steps, Weight


class Ufogen(Discriminated):
    """UFOGen (Xu et al. 2023): a GAN loss between neighbouring noise levels, and the denoising loss."""

    name: Literal["ufogen"]
    levels: Steps = Field(4, description="noise levels that the student is trained on; the highest is that of its call")
    sigma_min: Sigma | None = Field(None, description=f"level at which images of the lowest level are judged; {LOWEST}")
    sigma_max: Sigma = Field(80.0, description="highest level")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    reconstruction_weight: Weight = Field(
        description="of the squared error of the image over sigma^2, which is that of the noise; 1 in the authors' code"
    )
    r1: Weight = Field(0.0, description="weight of the squared gradient of the logits of real images; 0 = off")
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[DiscriminatorPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Ufogen:
        check_order(self.sigma_min, self.sigma_max)
        return self

    @property
    def version(self) -> int:
        """3: as in `Discriminated`, and the reconstruction loss is the squared error of the noise."""
        return 3
