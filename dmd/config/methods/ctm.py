"""Section `method` of Consistency Trajectory Models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import CallLevels
from dmd.config.methods.distances import Distance, L2Distance
from dmd.config.methods.levels import LOWEST
from dmd.config.section_base import (
    SIGMA_MIN,
    Batch,
    Decay,
    Guidance,
    LogMean,
    LogStd,
    Many,
    Rho,
    Section,
    Sigma,
    Steps,
    Weight,
    refuse,
)


class Ctm(MethodSection):
    """Consistency Trajectory Models (Kim et al. 2023): steps between any two levels of the teacher's ODE.

    The defaults are those of the authors for CIFAR-10, but their distance is LPIPS, their optimiser RAdam, and their
    weight of the denoising loss follows the norms of gradients. There is no GAN loss.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 4.0e-4, "weight_decay": 0.0}}
    # The base network that adapters share has no second time. Gradients pass through a network that is not trained.
    refuses = ("adapter", "shard_parameters")
    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["ctm"]
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    calls: CallLevels = Field(
        (80.0,),
        description="noise levels of the student's calls, the first the highest of the losses; sample.calls: n: the "
        "first n",
    )
    levels: Annotated[Steps, Field(ge=2)] = Field(18, description="number of noise levels of the consistency loss")
    sigma_min: Sigma | None = Field(None, description=f"lowest of these levels; {LOWEST}")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    solver_steps: Steps = Field(
        17, description="largest number of Heun's steps of the teacher in an update; n steps have a probability ~ n"
    )
    metric: Distance = Field(L2Distance(kind="l2"), description="distance between the student and its target")
    target_decay: Decay = Field(
        0.999, description="EMA decay of the target network; 0 = the student after the previous update"
    )
    denoising_weight: Weight = Field(1.0, description="of the denoising loss; 0 = off")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma) of the denoising loss")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma) of the denoising loss")
    curve_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="fraction of images whose level of the denoising loss is drawn from the upper 70 % of the curve of "
        "`levels` instead",
    )
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Ctm:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        low = SIGMA_MIN if self.sigma_min is None else self.sigma_min
        if low >= self.calls[-1]:
            yield f"sigma_min: {low:g} is not below the last of calls, {self.calls[-1]:g}"
        if self.solver_steps >= self.levels:
            most = self.levels - 1
            yield f"solver_steps: {self.solver_steps}, but {self.levels} levels have {most} steps between them"

    @property
    def random_passes(self) -> bool:
        """Whether the number of the teacher's steps is drawn."""
        return self.solver_steps > 1

    def roles(self) -> dict[str, Role]:
        """Teacher, the student, whose network gets a second time, and the target, its moving average."""
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance),
            STUDENT: Role(Source.START, Mode.TRAINED, second_time=True),
            "target": Role(Source.STUDENT, Mode.COPIED, second_time=True),
        }

    def distance_key(self) -> str:
        """The key of the metric."""
        return "metric"

    def distance(self) -> Section:
        """The distance between the student and its target."""
        return self.metric

    def decoders(self) -> tuple[str, ...]:
        """The decoder of the metric."""
        return (self.metric.decoder,)
