"""Section `method` of f-distill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import MethodSection, Mode, Phase, Role, Source, score_roles
from dmd.config.methods.adversarial import Adversarial
from dmd.config.methods.keys import DivergenceName, MatchingWeighting
from dmd.config.methods.levels import KarrasLevels, Levels
from dmd.config.section_base import Batch, Decay, Guidance, Many, Repeats, Sigma, refuse


class FDistillPhase(Phase):
    """A phase of f-distill."""

    fake_updates: Repeats = Field(5, description="updates of fake denoiser and head per update of the student")


class FDistill(MethodSection):
    """f-distill (Xu et al. 2025): matching by any f-divergence, with the density ratio of a GAN's head."""

    refuses = ("shard_parameters",)  # the GAN loss makes passes of half a network
    streams = frozenset({"images"})
    name: Literal["f-distill"]
    divergence: DivergenceName = Field(
        "jensen-shannon", description="from mode-seeking to mode-covering; reverse-kl is that of DMD"
    )
    sigma: Sigma | None = Field(80.0, description="noise level of the student's input; null = the teacher's highest")
    levels: Levels = Field(KarrasLevels(), description="noise levels of all losses")
    weighting: MatchingWeighting = Field("eq8", description="w_t of the matching gradient, as in method dmd")
    alpha_factor: bool = Field(False, description="true: keep alpha_t of DMD's Eqs. 7 and 8")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    adversarial: Adversarial = Field(Adversarial(), description="GAN loss, whose head gives the density ratio")
    ratio_decay: Decay = Field(0.5, description="of the mean ratio by noise level; 0 = that of the update before")
    batch_size: Batch = Field(280, description="images in each loss")
    phases: Annotated[Many[FDistillPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> FDistill:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if not self.adversarial.fake_weight:
            yield "adversarial.fake_weight: 0, but the head that gives the density ratio learns by this loss"

    @property
    def version(self) -> int:
        """2: the weights of the head are drawn from the seed of the training."""
        return 2

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator), fake denoiser (fake score), and the head of the GAN loss."""
        return score_roles(self.guidance) | {"head": Role(Source.NEW, Mode.TRAINED)}
