"""The GAN loss of methods that match distributions."""

from __future__ import annotations

from pydantic import Field

from dmd.config.section_base import Section, Weight


class Adversarial(Section):
    """The GAN loss of DMD2 (Yin et al. 2024, Section 4.3): a head on the fake denoiser's bottleneck judges images."""

    student_weight: Weight = Field(3.0e-3, description="in the student's loss; 0 = off")
    fake_weight: Weight = Field(1.0e-2, description="in the loss of head and fake denoiser; 0 = off")
    r1: Weight = Field(
        0.0, description="weight of the squared gradient of the logits of real images, within fake_weight"
    )
