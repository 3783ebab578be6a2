"""Section `method` of UFOGen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Integer, Many, Rho, Sigma, Steps, Weight


class UfogenPhase(Phase):
    """A phase of UFOGen."""

    discriminator_updates: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        1, description="updates of the discriminator per update of the student"
    )


class Ufogen(MethodSection):
    """UFOGen (Xu et al. 2023): a GAN loss between neighbouring noise levels, and the denoising loss."""

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        role: {"learning_rate": 1.0e-4, "betas": (0.0, 0.99), "weight_decay": 0.0}
        for role in (STUDENT, "discriminator", "head")
    }
    refuses: ClassVar[tuple[str, ...]] = ("shard_parameters",)  # the discriminator makes passes of half a network
    name: Literal["ufogen"]
    levels: Steps = Field(4, description="noise levels that the student is trained on; the highest is that of its call")
    sigma_min: Sigma | None = Field(None, description=f"level at which images of the lowest level are judged; {LOWEST}")
    sigma_max: Sigma = Field(80.0, description="highest level")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    reconstruction_weight: Weight = Field(description="of the denoising loss; the paper's value is not published")
    r1: Weight = Field(0.0, description="weight of the squared gradient of the logits of real images; 0 = off")
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[UfogenPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Ufogen:
        check_order(self.sigma_min, self.sigma_max)
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
