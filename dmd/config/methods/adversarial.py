"""The GAN loss of methods that match distributions, and what methods with only such a loss have in common."""

from __future__ import annotations

from pydantic import Field

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import Repeats, Section, Weight


class Adversarial(Section):
    """The GAN loss of DMD2 (Yin et al. 2024, Section 4.3): a head on the fake denoiser's bottleneck judges images."""

    student_weight: Weight = Field(3.0e-3, description="in the student's loss; 0 = off")
    fake_weight: Weight = Field(1.0e-2, description="in the loss of head and fake denoiser; 0 = off")
    r1: Weight = Field(
        0.0, description="weight of the squared gradient of the logits of real images, within fake_weight"
    )


class DiscriminatorPhase(Phase):
    """A phase of a method with a discriminator."""

    discriminator_updates: Repeats = Field(1, description="updates of the discriminator per update of the student")


class Discriminated(MethodSection):
    """A method without a teacher: student and discriminator begin as the denoiser to start from."""

    optimiser_defaults = {
        role: {"learning_rate": 1.0e-4, "betas": (0.0, 0.99), "weight_decay": 0.0}
        for role in (STUDENT, "discriminator", "head")
    }
    refuses = ("shard_parameters",)  # the discriminator makes passes of half a network
    streams = frozenset({"images"})

    @property
    def version(self) -> int:
        """2: the weights of the head are drawn from the seed of the training."""
        return 2

    def roles(self) -> dict[str, Role]:
        """The student, the discriminator, and the head that makes logits."""
        return {
            STUDENT: Role(Source.START, Mode.TRAINED),
            "discriminator": Role(Source.START, Mode.TRAINED),
            "head": Role(Source.NEW, Mode.TRAINED),
        }
