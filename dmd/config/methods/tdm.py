"""Section `method` of Trajectory Distribution Matching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, FakePhase, MethodSection, Role, score_roles
from dmd.config.methods.call_times import FlowEulerTimes, KarrasTimes, ListedTimes, check_times
from dmd.config.methods.keys import MatchingWeighting
from dmd.config.methods.levels import KarrasLevels, Levels
from dmd.config.section_base import Batch, Guidance, Integer, Many, Scale


class Tdm(MethodSection):
    """Trajectory Distribution Matching (Luo et al. 2025): a student of several calls with DDIM steps between them."""

    optimiser_defaults = {
        STUDENT: {"learning_rate": 4.0e-6, "betas": (0.0, 0.95)},
        "fake": {"learning_rate": 2.0e-5},
    }
    name: Literal["tdm"]
    calls: Annotated[Integer, Field(ge=1, le=64)] = Field(4, description="network calls of the student")
    times: Annotated[KarrasTimes | ListedTimes | FlowEulerTimes, Field(discriminator="kind")] = Field(
        KarrasTimes(kind="karras"), description="noise levels of the calls, as in method dmd2"
    )
    levels: Levels = Field(KarrasLevels(), description="noise levels of matching and fake loss, split by the calls")
    weighting: MatchingWeighting = Field("eq8", description="w_t of the matching gradient, as in method dmd")
    alpha_factor: bool = Field(False, description="true: keep alpha_t of DMD's Eqs. 7 and 8")
    huber: Scale | None = Field(
        None, description="c of a pseudo-Huber loss, 0.001 in the authors' code; null = squared error, as in method dmd"
    )
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    batch_size: Batch = Field(64, description="images in each loss")
    phases: Annotated[Many[FakePhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Tdm:
        check_times(self.times, self.calls)
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator) and fake denoiser (fake score)."""
        return score_roles(self.guidance)
