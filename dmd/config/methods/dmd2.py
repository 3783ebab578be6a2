"""Section `method` of DMD2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import MethodSection, Mode, Phase, Role, Source, score_roles
from dmd.config.methods.adversarial import Adversarial
from dmd.config.methods.call_times import FlowEulerTimes, KarrasTimes, LcmTimes, ListedTimes, check_times
from dmd.config.methods.keys import MatchingWeighting
from dmd.config.methods.levels import Index, KarrasLevels, Levels
from dmd.config.section_base import Batch, Guidance, Integer, Many, Repeats, Section, Weight, refuse


class Decoupled(Section):
    """Guidance and matching with weights and noise levels of their own (Liu et al. 2025).

    Each image gets a second noise level and noise, for the guidance term alone. Its weight is guidance - 1.
    """

    matching_weight: Weight = Field(1.0, description="of the matching term; 0 = off")
    below_call: bool = Field(
        True, description="the guidance term draws only levels below that of the trained call, as in the paper"
    )
    min_index: Index | None = Field(None, description="lowest index that the guidance term draws; null = as `levels`")
    max_index: Index | None = Field(None, description="highest index that the guidance term draws; null = as `levels`")


class Dmd2Phase(Phase):
    """A phase of DMD2."""

    fake_updates: Repeats = Field(5, description="updates of the fake denoiser per update of the student")


class Dmd2(MethodSection):
    """DMD2 (Yin et al. 2024): matching without pairs, for one or several calls, and a GAN loss with images."""

    refuses = ("shard_parameters",)  # the GAN loss makes passes of half a network
    keeps_first_calls = True
    name: Literal["dmd2"]
    calls: Annotated[Integer, Field(ge=1, le=64)] = Field(1, description="network calls of the student")
    times: Annotated[KarrasTimes | ListedTimes | LcmTimes | FlowEulerTimes, Field(discriminator="kind")] = Field(
        KarrasTimes(kind="karras"),
        description="noise levels of the calls; lcm and flow-match-euler read them from that scheduler of diffusers, "
        "so that rule export_pipeline can write the student",
    )
    levels: Levels = Field(KarrasLevels(), description="noise levels of matching, fake and GAN loss")
    levels_by_call: bool = Field(
        False,
        description="true: matching and fake loss of a call use the levels between its own and the next call's, so "
        "that each call has its own target; false: all levels, as DMD2, so that the images of all calls have one",
    )
    weighting: MatchingWeighting = Field("eq8", description="w_t of the matching gradient, as in method dmd")
    alpha_factor: bool = Field(False, description="true: keep alpha_t of DMD's Eqs. 7 and 8")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    decoupled: Decoupled | None = Field(
        None, description="weights and noise levels of guidance and matching; null = the guided real score as in dmd"
    )
    adversarial: Adversarial | None = Field(None, description="GAN loss, which reads images; null = none")
    batch_size: Batch = Field(280, description="images in each loss")
    phases: Annotated[Many[Dmd2Phase], Field(min_length=1)] = (Dmd2Phase(updates=40000),)

    @model_validator(mode="after")
    def _fits(self) -> Dmd2:
        check_times(self.times, self.calls)
        gan = self.adversarial
        if gan is not None and bool(gan.student_weight) != bool(gan.fake_weight):
            raise ValueError("adversarial: one of student_weight and fake_weight is 0: write null for no GAN loss")
        if self.decoupled is not None:
            refuse(self._decoupled_contradictions(self.decoupled))
        return self

    def _decoupled_contradictions(self, section: Decoupled) -> Iterator[str]:
        if not section.matching_weight and self.guidance == 1:
            yield "decoupled.matching_weight: 0, but guidance 1 has no guidance term: nothing is left to learn"
        levels = self.levels
        first = levels.min_index if section.min_index is None else section.min_index
        last = levels.max_index if section.max_index is None else section.max_index
        end = levels.count - 1 if isinstance(levels, KarrasLevels) else last
        if not first <= last <= end:
            within = f" within 0..{end}" if isinstance(levels, KarrasLevels) else ""
            yield f"decoupled: indices {first}..{last} are not a range{within}"

    @property
    def guidance_term(self) -> bool:
        """Whether guidance is a term of its own, with its own noise levels."""
        return self.decoupled is not None and self.guidance > 1

    @property
    def gan(self) -> Adversarial | None:
        """The section of the GAN loss; None if there is none, also by weights of 0."""
        return self.adversarial if self.adversarial is not None and self.adversarial.fake_weight else None

    @property
    def version(self) -> int:
        """2: the weights of the head of a GAN loss are drawn from the seed of the training."""
        return 2 if self.gan else 1

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator), fake denoiser (fake score), and the head of the GAN loss."""
        head = {"head": Role(Source.NEW, Mode.TRAINED)} if self.gan else {}
        return score_roles(self.guidance) | head

    def reads(self) -> frozenset[str]:
        """Images, for the GAN loss."""
        return frozenset({"images"} if self.gan else ())
