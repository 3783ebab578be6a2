"""Section `method` of Score identity Distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Phase, Role, score_roles
from dmd.config.methods.keys import DivergenceName
from dmd.config.methods.levels import KarrasCurve
from dmd.config.section_base import Batch, LogMean, LogStd, Many, Repeats, Scale, Section, Sigma, Weight


class ScoreIdentity(Section):
    """SiD's loss (Zhou et al. 2024).

    Up to a factor its gradient is that of the Fisher divergence for alpha 1/2, and with alpha 1 the same with a fixed
    distribution of samples.
    """

    kind: Literal["sid"]
    alpha: Annotated[float, Field(ge=-100, le=100)] = Field(
        1.2, description="1.2 is the authors' best value, 1.0 is safer"
    )


class ScoreImplicitMatching(Section):
    """SIM's loss (Luo et al. 2024): (mean y^2 + c^2)^1/2 of the difference y of teacher and fake denoiser."""

    kind: Literal["sim"]
    c: Scale = Field(5.4e-4, description="the loss is quadratic in differences well below c, linear well above")


class FDivergence(Section):
    """Uni-Instruct's loss (Wang et al. 2025): an f-divergence, with the density ratio that `adversarial` learns.

    For reverse-kl it is that of kind sid with the same alpha; for forward-kl alpha matters only where the ratio is at a
    bound.
    """

    kind: Literal["f-divergence"]
    name: DivergenceName = Field("forward-kl", description="from mode-seeking to mode-covering")
    alpha: Annotated[float, Field(ge=-100, le=100)] = Field(
        0.5,
        description="0.5 is the gradient of the divergence, 1 that for fixed weights and distribution of samples",
    )


class ScoreAdversarial(Section):
    """SiDA's GAN loss (Zhou et al. 2024): the mean over the channels of the fake denoiser's bottleneck is the logit."""

    student_weight: Weight = Field(1.0e-4, description="in the student's loss; the authors' 0.01 over their 100")
    fake_weight: Scale = Field(1.0, description="in the fake denoiser's loss, over the number of values of an image")


class SidPhase(Phase):
    """A phase of SiD."""

    train: Literal["both", "fake"] = Field("both", description="fake: no step of the student")
    adversarial_scale: Weight = Field(1.0, description="factor on adversarial.student_weight; 0 = off")
    fake_updates: Repeats = Field(1, description="updates of the fake denoiser before each update of the student")


class Sid(MethodSection):
    """Score identity Distillation (Zhou et al. 2024): trains a one-call student without pairs or images."""

    optimiser_defaults = {
        role: {"learning_rate": 1.0e-5, "betas": (0.0, 0.999), "weight_decay": 0.0} for role in (STUDENT, "fake")
    }
    refuses = ("shard_parameters",)  # gradients pass through networks that are not trained
    name: Literal["sid"]
    sigma: Sigma = Field(2.5, description="noise level of the student's input")
    divergence: Annotated[ScoreIdentity | ScoreImplicitMatching | FDivergence, Field(discriminator="kind")] = Field(
        ScoreIdentity(kind="sid"), description="the student's loss"
    )
    adversarial: ScoreAdversarial | None = Field(None, description="SiDA's GAN loss, which reads images; null = none")
    levels: KarrasCurve = Field(KarrasCurve(), description="noise levels in the student's loss")
    sigma_log_mean: LogMean = Field(-1.2, description="of ln(sigma) in the fake denoiser's loss")
    sigma_log_std: LogStd = Field(1.2, description="of ln(sigma) in the fake denoiser's loss")
    batch_size: Batch = Field(256, description="images")
    phases: Annotated[Many[SidPhase], Field(min_length=1)] = (SidPhase(updates=2000000),)

    @model_validator(mode="after")
    def _fits(self) -> Sid:
        if self.adversarial and self.divergence.kind == "sim":
            raise ValueError("adversarial: it has the normaliser of kind sid, but divergence is sim")
        if self.divergence.kind == "f-divergence" and not self.adversarial:
            raise ValueError(
                "divergence.f-divergence: its density ratio is learned by section adversarial, but there is none: add "
                "`adversarial: {}`"
            )
        return self

    @property
    def version(self) -> int:
        """2: the ratio is constant beyond its bounds in the second term of an f-divergence, too."""
        return 2 if self.divergence.kind == "f-divergence" else 1

    def notes(self, phase: Phase) -> list[str]:
        """A line if adversarial_scale has no effect."""
        assert isinstance(phase, SidPhase)
        scale = phase.adversarial_scale
        if scale == 1 or (self.adversarial and phase.train == "both"):
            return []
        return [f"adversarial_scale {scale:g} has no effect: the student has no GAN loss"]

    def roles(self) -> dict[str, Role]:
        """Teacher, student and fake denoiser."""
        return score_roles()

    def reads(self) -> frozenset[str]:
        """Images, for the GAN loss."""
        return frozenset({"images"} if self.adversarial else ())

    def losses(self, phase: Phase) -> frozenset[str]:
        """Those of the fake denoiser, and of the student unless the phase trains the fake denoiser alone."""
        assert isinstance(phase, SidPhase)
        return frozenset({"fake"} if phase.train == "fake" else {"fake", STUDENT})
