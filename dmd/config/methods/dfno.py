"""Section `method` of DFNO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.distances import Distance, L2Distance
from dmd.config.section_base import Batch, Integer, Many, Section, Sigma


class Dfno(MethodSection):
    """DFNO (Zheng et al. 2023): one pass of the student gives several states of the teacher's path, and so the image.

    The defaults are those of the paper for CIFAR-10, but for `metric`, there a distance in VGG features, a schedule
    that halves the learning rate several times, no clip of gradients, an `ema_decay` of 0.9999 and dropout of 0.2.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 2.0e-4, "weight_decay": 0.0}}
    schedule_defaults = {"warmup": 10000}
    refuses = ("adapter",)  # the base network that adapters share has not the new layers
    streams = frozenset({"trajectories"})
    name: Literal["dfno"]
    sigma: Sigma | None = Field(80.0, description="noise level of the pairs' noise; null = the teacher's highest")
    states: Annotated[Integer, Field(ge=1, le=64)] = Field(
        4, description="states of a path, as many as pairs.kept_states; 1 = the image alone, without new layers"
    )
    metric: Distance = Field(L2Distance(kind="l2"), description="distance of states")
    largest_weight: Annotated[float, Field(ge=1, le=1e6)] = Field(
        1.0e4, description="of the weight 1 / sigma of a state, which is at least 1; that of the image"
    )
    batch_size: Batch = Field(256, description="paths")
    phases: Annotated[Many[Phase], Field(min_length=1)] = (Phase(updates=400000),)

    @model_validator(mode="after")
    def _fits(self) -> Dfno:
        if self.metric.decoder != "none":
            raise ValueError(
                f"metric.decoder: {self.metric.decoder}, but the states before the last one have noise, which no "
                "autoencoder decodes: leave it out"
            )
        return self

    @property
    def starts_from_pairs(self) -> bool:
        """True."""
        return True

    def roles(self) -> dict[str, Role]:
        """The student alone: its teacher has drawn the paths."""
        return {STUDENT: Role(Source.START, Mode.TRAINED, states=self.states)}

    def distance_key(self) -> str:
        """The key of the metric."""
        return "metric"

    def distance(self) -> Section | None:
        """The metric."""
        return self.metric

    def decoders(self) -> tuple[str, ...]:
        """None."""
        return (self.metric.decoder,)
