"""Section `method` of moment matching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import FakePhase, MethodSection, Role, score_roles
from dmd.config.methods.call_times import KarrasTimes, ListedTimes, check_times
from dmd.config.methods.keys import MatchingWeighting
from dmd.config.methods.levels import LOWEST
from dmd.config.section_base import Batch, Guidance, Integer, Many, Rho, Sigma


class MomentMatching(MethodSection):
    """Moment matching (Salimans et al. 2024): a student of several calls with ancestral steps between them."""

    streams = frozenset({"images"})
    name: Literal["moment-matching"]
    calls: Annotated[Integer, Field(ge=1, le=64)] = Field(8, description="network calls of the student")
    times: Annotated[KarrasTimes | ListedTimes, Field(discriminator="kind")] = Field(
        KarrasTimes(kind="karras"), description="noise levels of the calls, as in method dmd2"
    )
    sigma_min: Sigma | None = Field(None, description=f"lowest level of the losses of the last call; {LOWEST}")
    rho: Rho = Field(7.0, description="the levels of the losses of a call are drawn uniformly in sigma^(1/rho)")
    weighting: MatchingWeighting = Field(
        "eq8", description="w(s) of the student's loss, as w_t in method dmd; sigma2/alpha is 1"
    )
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    batch_size: Batch = Field(64, description="images in each loss")
    phases: Annotated[Many[FakePhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> MomentMatching:
        check_times(self.times, self.calls)
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher, student (generator) and fake denoiser."""
        return score_roles(self.guidance)
