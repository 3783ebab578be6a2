"""Section `method` of rectified flow: reflow, and distillation to one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.distances import Distance, L2Distance
from dmd.config.methods.levels import LOWEST, check_order
from dmd.config.section_base import Batch, Integer, Many, Section, Sigma, refuse


class RectifiedFlow(MethodSection):
    """Rectified flow (Liu et al. 2022): a student whose paths are straight, or one call in place of its paths."""

    optimiser_defaults = {STUDENT: {"weight_decay": 0.0}}
    streams = frozenset({"pairs"})
    name: Literal["rectified-flow"]
    objective: Literal["reflow", "distillation"] = Field(
        description="reflow: the student learns the straight paths between noise and image of the pairs; distillation: "
        "its one call learns to give the image of the noise"
    )
    sigma: Sigma | None = Field(80.0, description="noise level of the pairs' noise; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"lowest level of reflow; {LOWEST}")
    calls: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        1, description="network calls of the student, evenly spaced in t = sigma / (1 + sigma)"
    )
    metric: Distance = Field(L2Distance(kind="l2"), description="distance of images, for objective distillation")
    batch_size: Batch = Field(128, description="pairs")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> RectifiedFlow:
        check_order(self.sigma_min, self.sigma)
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.objective == "reflow" and self.metric != L2Distance(kind="l2"):
            yield "metric: objective reflow takes none, its loss is the squared error of velocities"
        if self.objective == "distillation":
            if self.calls != 1:
                yield f"calls: {self.calls}, but objective distillation trains one call"
            if self.sigma_min is not None:
                yield f"sigma_min: {self.sigma_min:g}, but objective distillation has one level, sigma"

    @property
    def denoises(self) -> bool:
        """True for objective reflow."""
        return self.objective == "reflow"

    @property
    def starts_from_pairs(self) -> bool:
        """True."""
        return True

    def roles(self) -> dict[str, Role]:
        """The student alone: its teacher has drawn the pairs."""
        return {STUDENT: Role(Source.START, Mode.TRAINED)}

    def distance_key(self) -> str:
        """The key of the metric."""
        return "metric"

    def distance(self) -> Section | None:
        """The distance of images, for objective distillation."""
        return None if self.denoises else self.metric

    def decoders(self) -> tuple[str, ...]:
        """The decoder of the metric."""
        return () if self.denoises else (self.metric.decoder,)
