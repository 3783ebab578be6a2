"""Section `method` of Distribution Matching Distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import MethodSection, Phase, Role, score_roles
from dmd.config.methods.distances import Decoder, Distance, L2Distance
from dmd.config.methods.keys import MatchingWeighting
from dmd.config.methods.levels import Index, KarrasLevels, Levels
from dmd.config.section_base import Batch, Count, Guidance, Integer, Many, Section, Sigma, Weight, refuse


class DmdPhase(Phase):
    """A phase of DMD; null takes the value of the method's section."""

    train: Literal["both", "fake"] = Field("both", description="fake: the fake denoiser alone, for `updates` updates")
    matching_scale: Weight = Field(1.0, description="factor on matching_weight; 0 = off")
    regression_scale: Weight = Field(1.0, description="factor on regression_weight; 0 = off")
    fake_updates: Annotated[Integer, Field(ge=0, le=10**4)] = Field(
        1, description="updates of the fake denoiser per update of the student"
    )
    max_index: Index | None = Field(None, description="highest index of a noise level in the matching loss")
    num_pairs: Count | None = Field(None, description="read only the first num_pairs pairs of the manifest; null = all")
    decoder: Decoder | None = Field(None, description="decoder of regression_distance")
    matching_batch_size: Batch | None = Field(None, description="images")
    regression_batch_size: Batch | None = Field(None, description="pairs")


class Dmd(MethodSection):
    """Distribution Matching Distillation (Yin et al. 2023)."""

    name: Literal["dmd"]
    sigma: Sigma | None = Field(80.0, description="noise level of the student's input; null = the teacher's highest")
    levels: Levels = Field(KarrasLevels(), description="noise levels of matching and fake loss")
    weighting: MatchingWeighting = Field(
        "eq8",
        description="w_t of the matching gradient: Eq. 8, two of the paper's Table 2, Eq. 8 without its normaliser",
    )
    alpha_factor: bool = Field(False, description="true: keep alpha_t of Eqs. 7 and 8, which the official code omits")
    fake_score: bool = Field(True, description="false = matching gradient from the real score only")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    match_pairs: bool = Field(False, description="matching and fake losses also use images from the pairs' noise")
    matching_weight: Weight = Field(1.0, description="weight of the matching loss; 0 = off")
    regression_weight: Weight = Field(0.25, description="lambda_reg; 0 = off, and no pairs are read")
    regression_distance: Distance = Field(L2Distance(kind="l2"), description="distance in Eq. 9; the paper uses lpips")
    matching_batch_size: Batch = Field(392, description="images in the matching loss, and in the fake loss")
    regression_batch_size: Batch = Field(392, description="pairs")
    shared_noise: bool = Field(False, description="use one noised batch for both the matching and the fake loss")
    phases: Annotated[Many[DmdPhase], Field(min_length=1)] = (DmdPhase(updates=300000),)

    @model_validator(mode="after")
    def _fits(self) -> Dmd:
        refuse([*self._contradictions(), *(line for index in range(len(self.phases)) for line in self._phase(index))])
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.match_pairs and not any({"matching", "regression"} <= self.losses(phase) for phase in self.phases):
            yield "match_pairs: true, but no phase has both a matching and a regression loss"
        if not any(self.losses(phase) for phase in self.phases):
            yield "phases: no phase has a loss: the weights are 0"

    def _phase(self, index: int) -> Iterator[str]:
        phase, levels, key = self.phases[index], self.levels, f"phases[{index}]"
        try:
            self.notes(phase)
        except ValueError as error:
            yield f"{key}.fake_updates: {error}"
        if phase.fake_updates > 1 and (phase.train == "fake" or not phase.matching_scale):
            why = "train is fake, whose updates `updates` counts" if phase.train == "fake" else "matching_scale is 0"
            yield f"{key}.fake_updates: {phase.fake_updates} would have no effect: {why}"
        first, last = levels.min_index, phase.max_index
        end = levels.count - 1 if isinstance(levels, KarrasLevels) else None
        if last is not None and (last < first or (end is not None and last > end)):
            yield f"{key}.max_index: {last} is not within {first}{' or more' if end is None else f'..{end}'}"

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator) and fake denoiser (fake score)."""
        return score_roles(self.guidance)

    @property
    def starts_from_pairs(self) -> bool:
        """True if a phase has a regression loss."""
        return "pairs" in self.reads()

    def reads(self) -> frozenset[str]:
        """Pairs, if a phase has a regression loss."""
        return frozenset({"pairs"} if any("regression" in self.losses(phase) for phase in self.phases) else ())

    def losses(self, phase: Phase) -> frozenset[str]:
        """Names of the losses matching, regression and fake whose weight is not 0.

        A phase that trains only the fake denoiser has no loss if the matching loss does not use the fake score.
        """
        assert isinstance(phase, DmdPhase)
        if phase.train == "fake":
            return frozenset({"fake"} if self.matching_weight and self.fake_score else ())
        names = {"matching"} if self.matching_weight * phase.matching_scale else set()
        names |= {"regression"} if self.regression_weight * phase.regression_scale else set()
        return frozenset(
            names | ({"fake"} if "matching" in names and self.fake_score and phase.fake_updates else set())
        )

    def notes(self, phase: Phase) -> list[str]:
        """A line if fake_updates has no effect. ValueError for shared noise without fake updates."""
        assert isinstance(phase, DmdPhase)
        losses = self.losses(phase)
        if "matching" in losses and self.shared_noise and not phase.fake_updates:
            raise ValueError("shared_noise needs fake_updates of at least 1")
        if phase.train == "both" and phase.fake_updates and "fake" not in losses:
            return [f"fake_updates {phase.fake_updates} has no effect: the fake score is not used"]
        return []

    def distance(self) -> Section | None:
        """The distance of the regression loss; None if no phase has that loss."""
        return self.regression_distance if "pairs" in self.reads() else None

    def distance_key(self) -> str:
        """The key of the regression loss's distance."""
        return "regression_distance"

    def batch_sizes(self) -> dict[str, int]:
        """Batch sizes of the losses of each phase, its own or those of the section."""
        sizes = {}
        for index, phase in enumerate(self.phases):
            losses = self.losses(phase)
            used = {
                "matching_batch_size": losses & {"matching", "fake"},
                "regression_batch_size": losses & {"regression"},
            }
            for key in (key for key, active in used.items() if active):
                own = getattr(phase, key)
                sizes[key if own is None else f"phases[{index}].{key}"] = own or getattr(self, key)
        return sizes

    def decoders(self) -> tuple[str, ...]:
        """The decoders of phases with a regression loss."""
        phases = [phase for phase in self.phases if "regression" in self.losses(phase)]
        return tuple(dict.fromkeys(phase.decoder or self.regression_distance.decoder for phase in phases))
