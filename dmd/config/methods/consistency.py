"""Section `method` of consistency distillation and training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.distances import L2Distance, LpipsDistance
from dmd.config.methods.keys import Dropout
from dmd.config.methods.levels import KarrasRange
from dmd.config.section_base import (
    SIGMA_MIN,
    Batch,
    Decay,
    Guidance,
    LogMean,
    LogStd,
    Many,
    Scale,
    Section,
    Sigma,
    Steps,
    refuse,
)


def _changed(section: Section, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of `keys` whose values differ from the defaults, with their values."""
    for key in keys:
        if (value := getattr(section, key)) != type(section).model_fields[key].default:
            yield key, value


class FixedNumber(Section):
    """A constant number of noise levels."""

    kind: Literal["fixed"]
    count: Annotated[Steps, Field(ge=2)] = Field(18, description="number of levels N")


class GrowingNumber(Section):
    """A number of noise levels that grows with the updates."""

    first: Annotated[Steps, Field(ge=2)]
    last: Steps

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last {self.last} is below first {self.first}: the number of levels must grow")
        return self


class RootNumber(GrowingNumber):
    """N(k) grows from `first` to `last` + 1, its square linearly in k (Song et al. 2023, Appendix C)."""

    kind: Literal["root"]
    first: Annotated[Steps, Field(ge=2)] = Field(2, description="N at the first update")
    last: Steps = Field(150, description="N - 1 at the last update")


class DoublingNumber(GrowingNumber):
    """N(k) = first + 1, 2 first + 1, 4 first + 1, ..., last + 1 (Song and Dhariwal 2023, Table 1)."""

    kind: Literal["doubling"]
    first: Annotated[Steps, Field(ge=2)] = Field(10, description="N - 1 at the first update")
    last: Steps = Field(1280, description="N - 1 at the last update")


class PseudoHuberDistance(Section):
    """sqrt(|x - y|^2 + c^2) - c, the norm over all values of an image (Song and Dhariwal 2023, Table 1)."""

    kind: Literal["pseudo-huber"]
    c: Scale | None = Field(None, description="null = 0.00054 sqrt(d) for images of d values")


class ConsistencyLevels(KarrasRange):
    """N noise levels (Karras et al. 2022, Eq. 5), of which two neighbours are compared; N may depend on the update."""

    number: Annotated[FixedNumber | RootNumber | DoublingNumber, Field(discriminator="kind")] = Field(
        FixedNumber(kind="fixed"), description="number of levels N"
    )
    distribution: Literal["uniform", "log-normal"] = Field("uniform", description="of the levels drawn")
    sigma_log_mean: LogMean = Field(-1.1, description="mean of ln(sigma), for log-normal")
    sigma_log_std: LogStd = Field(2.0, description="standard deviation of ln(sigma), for log-normal")

    @model_validator(mode="after")
    def _fits(self) -> ConsistencyLevels:
        unused = ("sigma_log_mean", "sigma_log_std") if self.distribution == "uniform" else ()
        refuse(f"{key}: {value:g}, but distribution is uniform" for key, value in _changed(self, unused))
        return self


Metric = Annotated[L2Distance | LpipsDistance | PseudoHuberDistance, Field(discriminator="kind")]


class Consistency(MethodSection):
    """Consistency models (Song et al. 2023, Song and Dhariwal 2023).

    The defaults are those of Song et al. for distillation on CIFAR-10 with L2, with two exceptions: AdamW instead of
    RAdam, and `ema_decay`, which is 0.9999 in the paper.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 4.0e-4, "weight_decay": 0.0}}
    schedule_defaults = {"warmup": 0}

    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["consistency"]
    teach: Literal["distillation", "training"] = Field(
        "distillation",
        description="sample at the lower level: a step of the teacher's ODE, or the image plus the same noise",
    )
    solver: Literal["heun", "euler"] = Field("heun", description="solver of the teacher's ODE step")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    levels: ConsistencyLevels = ConsistencyLevels()
    metric: Metric = Field(L2Distance(kind="l2"), description="distance between the student and its target")
    weighting: Literal["one", "gap"] = Field("one", description="gap: 1 over the difference of the two levels")
    target_decay: Decay = Field(
        0.0, description="EMA decay of the target network; 0 = the target is the student, without gradient"
    )
    target_schedule: Literal["constant", "levels"] = Field(
        "constant", description="levels: mu(k) = exp(s0 ln(target_decay) / N(k)), s0 the first number of levels"
    )
    dropout: Dropout = False
    calls: Annotated[Many[Sigma], Field(min_length=1)] | None = Field(
        None,
        description="noise levels of the student's calls; sample.calls: n uses the first n; null = sigma_max only",
    )
    batch_size: Batch = Field(512, description="images")
    phases: Annotated[Many[Phase], Field(min_length=1)] = (Phase(updates=800000),)

    @model_validator(mode="after")
    def _fits(self) -> Consistency:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.target_schedule == "levels" and not (self.target_decay and isinstance(self.levels.number, RootNumber)):
            yield "target_schedule: levels needs target_decay above 0, and levels.number of kind root"
        if self.weighting != "one" and self.decoders() and not self.plain:
            yield f"weighting {self.weighting}: it needs a distance per image, which only l2 and pseudo-huber give"
        if self.teach == "training":
            for key, value in _changed(self, ("solver", "guidance")):
                yield f"{key}: {value}, but teach training has no teacher"
        if self.calls is not None:
            top = self.calls[0] if self.levels.sigma_max is None else self.levels.sigma_max
            descending = all(later < sigma for sigma, later in zip(self.calls, self.calls[1:], strict=False))
            low = SIGMA_MIN if self.levels.sigma_min is None else self.levels.sigma_min
            if not descending or self.calls[0] != top or self.calls[-1] <= low:
                yield f"calls: {list(self.calls)} do not descend from sigma_max {top:g} to above {low:g}"

    def distance_key(self) -> str:
        """The key of the metric."""
        return "metric"

    @property
    def plain(self) -> bool:
        """Whether the metric is a formula, without LPIPS and decoder."""
        return not isinstance(self.metric, LpipsDistance) and self.decoders() in ((), ("none",))

    def roles(self) -> dict[str, Role]:
        """Teacher (for distillation), student, and a target network (with a decay)."""
        teacher = {TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance)}
        target = {"target": Role(Source.STUDENT, Mode.COPIED)}
        return {
            **(teacher if self.teach == "distillation" else {}),
            STUDENT: Role(Source.START, Mode.TRAINED),
            **(target if self.target_decay else {}),
        }

    def distance(self) -> Section:
        """The distance between the student and its target."""
        return self.metric

    def decoders(self) -> tuple[str, ...]:
        """The decoder of the metric; pseudo-Huber has none."""
        return () if isinstance(self.metric, PseudoHuberDistance) else (self.metric.decoder,)
