"""Section `method` of each method, one class each; the union at the end chooses by `name`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, WEIGHTS, MethodSection, Mode, Phase, Role, Source
from dmd.config.section_base import (
    SIGMA_MAX,
    SIGMA_MIN,
    UNSET_PATH,
    Batch,
    Count,
    Decay,
    Guidance,
    Integer,
    LogMean,
    LogStd,
    Many,
    Path,
    Pinned,
    Rho,
    Scale,
    Section,
    Side,
    Sigma,
    Steps,
    Weight,
    refuse,
)

Decoder = Literal["none", "tiny", "full"]
Index = Annotated[Integer, Field(ge=0, le=10**5)]  # of a noise level
DECODER = "decodes latents before the distance: the tiny or the full autoencoder of the teacher, or none"


LOWEST = "null = 0.002 or, if higher, the teacher's"


def _check_order(sigma_min: float | None, sigma_max: float | None) -> None:
    """ValueError unless sigma_max is above sigma_min, or EDM's lowest; a sigma_max of None is unknown and passes."""
    sigma_min = SIGMA_MIN if sigma_min is None else sigma_min
    if sigma_max is not None and sigma_max <= sigma_min:
        raise ValueError(f"sigma_max {sigma_max:g} is not above sigma_min {sigma_min:g}")


def _changed(section: Section, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of `keys` whose values differ from the defaults, with their values."""
    for key in keys:
        if (value := getattr(section, key)) != type(section).model_fields[key].default:
            yield key, value


class KarrasLevels(Section):
    """Noise levels of EDM teachers (Karras et al. 2022, Eq. 5), and the range that the matching loss draws from."""

    kind: Literal["karras"] = "karras"
    count: Annotated[Steps, Field(ge=2)] = Field(1000, description="number of levels; index 0 is sigma_min")
    sigma_min: Sigma | None = Field(None, description=f"lowest level; {LOWEST}")
    sigma_max: Sigma | None = Field(None, description="highest level; null = 80 or, if lower, the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")
    min_index: Index = Field(20, description="lowest index that the matching loss draws")
    max_index: Index = Field(980, description="highest index that the matching loss draws")

    @model_validator(mode="after")
    def _range(self) -> KarrasLevels:
        _check_order(self.sigma_min, SIGMA_MAX if self.sigma_max is None else self.sigma_max)
        if not self.min_index <= self.max_index < self.count:
            raise ValueError(f"indices {self.min_index}..{self.max_index} are not a range within 0..{self.count - 1}")
        return self


class TeacherLevels(Section):
    """The discrete noise levels that the teacher was trained on."""

    kind: Literal["teacher"]
    min_index: Index = Field(20, description="lowest index that the matching loss draws")
    max_index: Index = Field(980, description="highest index that the matching loss draws")

    @model_validator(mode="after")
    def _range(self) -> TeacherLevels:
        if self.min_index > self.max_index:
            raise ValueError(f"indices {self.min_index}..{self.max_index} are not a range")
        return self


class L2Distance(Section):
    """Mean squared error."""

    kind: Literal["l2"]
    decoder: Decoder = Field("none", description=DECODER)


class LpipsDistance(Section):
    """LPIPS on VGG16 features (Zhang et al. 2018)."""

    kind: Literal["lpips"]
    file: Path = Field(UNSET_PATH, description="weights of torchvision's VGG16")
    sha256: Pinned = None
    pooling: Literal["average", "max"] = Field(
        "average", description="average: as in DMD's official code; max: as LPIPS was published"
    )
    size: Annotated[Side, Field(ge=16, description="side in pixels to upsample images to")] = 224
    decoder: Decoder = Field("none", description=DECODER)


def _karras(value: Any) -> Any:
    """Adds the default `kind: karras` to levels without a kind."""
    return {"kind": "karras", **value} if isinstance(value, dict) else value


Levels = Annotated[KarrasLevels | TeacherLevels, Field(discriminator="kind"), BeforeValidator(_karras)]
Distance = Annotated[L2Distance | LpipsDistance, Field(discriminator="kind")]


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
    weighting: Literal["eq8", "sigma/alpha", "sigma3/alpha", "sigma2/alpha"] = Field(
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
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "fake": Role(Source.START, Mode.TRAINED),
        }

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


class ProgressivePhase(Phase):
    """A round: one step of the student replaces two steps of its teacher."""

    steps: Steps = Field(description="network calls of the student: half of the previous round's")
    fresh_optimiser: bool = Field(True, description="clear the student's Adam moments first")
    fresh_average: bool = Field(True, description="restart the student's moving average")


class Progressive(MethodSection):
    """Progressive distillation (Salimans and Ho 2022). The learning rate falls to 0 within each round."""

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        STUDENT: {"weight_decay": 0.0, "gradient_clip": 1.0}
    }
    schedule_defaults: ClassVar[Mapping[str, Any]] = {"over": "phase", "decay": "linear", "warmup": 0}
    name: Literal["progressive"]
    batch_size: Batch = Field(128, description="images")
    sigma_max: Sigma | None = Field(80.0, description="highest level, in all rounds; null = the teacher's highest")
    sigma_min: Sigma | None = Field(None, description=f"lowest level above 0 of the first teacher; {LOWEST}")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")
    weighting: Literal["truncated-snr", "snr+1", "network"] = Field(
        "truncated-snr", description="max(1/sigma^2, 1), 1 + 1/sigma^2, or the weight of the network's preconditioning"
    )
    next_teacher: Literal["raw", "averaged"] = Field(
        "raw", description="the student's weights that initialise teacher and student of the next round"
    )
    keep: Many[Steps] = Field((), description="calls of earlier rounds whose students are kept in the file, too")
    phases: Annotated[Many[ProgressivePhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _halves(self) -> Progressive:
        _check_order(self.sigma_min, self.sigma_max)
        steps = [phase.steps for phase in self.phases]
        for before, after in zip(steps, steps[1:], strict=False):
            if 2 * after != before:
                raise ValueError(f"phases: steps {after} is not half of the {before} of the round before")
        if odd := sorted(set(self.keep) - set(steps)):
            raise ValueError(f"keep: no round has {odd[0]} steps; there are {steps}")
        return self

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Averaged weights of the rounds in `keep`, and all weights of the last round."""
        return {number: ("ema",) for number in self.keep} | {self.final_calls(): WEIGHTS}

    def final_calls(self) -> int:
        """Steps of the last round."""
        return self.phases[-1].steps

    def roles(self) -> dict[str, Role]:
        """The student, and its teacher: the file's in the first round, then the student of the round before."""
        return {TEACHER: Role(Source.TEACHER, Mode.COPIED), STUDENT: Role(Source.START, Mode.TRAINED)}

    def reads(self) -> frozenset[str]:
        """Images."""
        return frozenset({"images"})


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


class ConsistencyLevels(Section):
    """N noise levels (Karras et al. 2022, Eq. 5), of which two neighbours are compared; N may depend on the update."""

    sigma_min: Sigma | None = Field(
        None, description=f"lowest level, where the student's map is the identity; {LOWEST}"
    )
    sigma_max: Sigma | None = Field(80.0, description="highest level; null = the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")
    number: Annotated[FixedNumber | RootNumber | DoublingNumber, Field(discriminator="kind")] = Field(
        FixedNumber(kind="fixed"), description="number of levels N"
    )
    distribution: Literal["uniform", "log-normal"] = Field("uniform", description="of the levels drawn")
    sigma_log_mean: LogMean = Field(-1.1, description="mean of ln(sigma), for log-normal")
    sigma_log_std: LogStd = Field(2.0, description="standard deviation of ln(sigma), for log-normal")

    @model_validator(mode="after")
    def _range(self) -> ConsistencyLevels:
        _check_order(self.sigma_min, self.sigma_max)
        unused = ("sigma_log_mean", "sigma_log_std") if self.distribution == "uniform" else ()
        refuse(f"{key}: {value:g}, but distribution is uniform" for key, value in _changed(self, unused))
        return self


class ConsistencyPhase(Phase):
    """A phase of consistency distillation or training."""


Metric = Annotated[L2Distance | LpipsDistance | PseudoHuberDistance, Field(discriminator="kind")]


class Consistency(MethodSection):
    """Consistency models (Song et al. 2023, Song and Dhariwal 2023).

    The defaults are those of Song et al. for distillation on CIFAR-10 with L2, with two exceptions: AdamW instead of
    RAdam, and `ema_decay`, which is 0.9999 in the paper.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 4.0e-4, "weight_decay": 0.0}}
    schedule_defaults: ClassVar[Mapping[str, Any]] = {"warmup": 0}

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
    dropout: bool = Field(False, description="dropout of the architecture, with the same mask for student and target")
    calls: Annotated[Many[Sigma], Field(min_length=1)] | None = Field(
        None,
        description="noise levels of the student's calls; sample.calls: n uses the first n; null = sigma_max only",
    )
    batch_size: Batch = Field(512, description="images")
    phases: Annotated[Many[ConsistencyPhase], Field(min_length=1)] = (ConsistencyPhase(updates=800000),)

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

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Every number from 1 to the length of `calls`, since the student maps each level to an image."""
        return {number + 1: WEIGHTS for number in range(self.final_calls())}

    def final_calls(self) -> int:
        """Length of `calls`."""
        return len(self.calls or (0,))

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

    def reads(self) -> frozenset[str]:
        """Images."""
        return frozenset({"images"})

    def distance(self) -> Section:
        """The distance between the student and its target."""
        return self.metric

    def decoders(self) -> tuple[str, ...]:
        """The decoder of the metric; pseudo-Huber has none."""
        return () if isinstance(self.metric, PseudoHuberDistance) else (self.metric.decoder,)


class DenoisingPhase(Phase):
    """A phase of the training of a denoiser."""


class Denoising(MethodSection):
    """EDM's objective (Karras et al. 2022, Table 1), which trains a teacher on images."""

    name: Literal["denoising"]
    batch_size: Batch = Field(description="images")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma)")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma)")
    levels: Literal["log-normal", "table"] = Field(
        "log-normal", description="table: uniformly among the network's discrete noise levels, as Stable Diffusion"
    )
    label_dropout: Decay = Field(
        0.0, description="fraction of images trained without their label or caption, for guidance"
    )
    phases: Annotated[Many[DenoisingPhase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student, which becomes the teacher of other trainings."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}

    def reads(self) -> frozenset[str]:
        """Images."""
        return frozenset({"images"})


class PartPhase(Phase):
    """A phase of the training of an autoencoder or of a CLIP."""


SWITCHES = ("dtype", "channels_last", "compile", "gradient_checkpointing", "shard_parameters")  # of denoisers only


class Autoencoding(MethodSection):
    """Reconstruction by an AutoencoderKL: absolute error, and the KL divergence of latents from unit noise."""

    refuses: ClassVar[tuple[str, ...]] = SWITCHES
    name: Literal["autoencoding"]
    batch_size: Batch = Field(description="images")
    kl_weight: Weight = Field(1.0e-6, description="of the KL divergence, summed over a latent, per value of the image")
    phases: Annotated[Many[PartPhase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student: the autoencoder."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}

    def reads(self) -> frozenset[str]:
        """Images."""
        return frozenset({"images"})


class Contrastive(MethodSection):
    """Contrast of images and captions within a batch (Radford et al. 2021), which is one pass on one process."""

    refuses: ClassVar[tuple[str, ...]] = (*SWITCHES, "micro_batch_size", "processes")
    name: Literal["contrastive"]
    batch_size: Annotated[Integer, Field(ge=2, le=10**5)] = Field(description="images, each with one caption")
    phases: Annotated[Many[PartPhase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Only the student: a CLIP."""
        return {STUDENT: Role(Source.NEW, Mode.TRAINED)}

    def reads(self) -> frozenset[str]:
        """Images, with captions."""
        return frozenset({"images"})


class KarrasCurve(Section):
    """Noise levels of Karras et al. 2022, Eq. 5, at uniform positions in [0, last): sigma_min at 0, sigma_max at 1."""

    sigma_min: Sigma | None = Field(None, description=f"lowest level; {LOWEST}")
    sigma_max: Sigma = Field(80.0, description="highest level")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")
    last: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="largest position; with the other defaults 0.8 is sigma 24.4"
    )

    @model_validator(mode="after")
    def _range(self) -> KarrasCurve:
        _check_order(self.sigma_min, self.sigma_max)
        return self


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


class SidPhase(Phase):
    """A phase of SiD."""

    fake_updates: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        1, description="updates of the fake denoiser before each update of the student"
    )


class Sid(MethodSection):
    """Score identity Distillation (Zhou et al. 2024): trains a one-call student without pairs or images."""

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        role: {"learning_rate": 1.0e-5, "betas": (0.0, 0.999), "weight_decay": 0.0} for role in (STUDENT, "fake")
    }
    refuses: ClassVar[tuple[str, ...]] = ("shard_parameters",)  # gradients pass through networks that are not trained
    name: Literal["sid"]
    sigma: Sigma = Field(2.5, description="noise level of the student's input")
    divergence: Annotated[ScoreIdentity | ScoreImplicitMatching, Field(discriminator="kind")] = Field(
        ScoreIdentity(kind="sid"), description="the student's loss"
    )
    levels: KarrasCurve = Field(KarrasCurve(), description="noise levels in the student's loss")
    sigma_log_mean: LogMean = Field(-1.2, description="of ln(sigma) in the fake denoiser's loss")
    sigma_log_std: LogStd = Field(1.2, description="of ln(sigma) in the fake denoiser's loss")
    batch_size: Batch = Field(256, description="images")
    phases: Annotated[Many[SidPhase], Field(min_length=1)] = (SidPhase(updates=2000000),)

    def roles(self) -> dict[str, Role]:
        """Teacher, student and fake denoiser."""
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "fake": Role(Source.START, Mode.TRAINED),
        }


class KarrasTimes(Section):
    """Noise levels of the calls, evenly spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5)."""

    kind: Literal["karras"]
    sigma_min: Sigma = Field(0.4, description="level of the last call, if there are several")
    sigma_max: Sigma | None = Field(80.0, description="level of the first call; null = the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")

    @model_validator(mode="after")
    def _range(self) -> KarrasTimes:
        _check_order(self.sigma_min, self.sigma_max)
        return self


class ListedTimes(Section):
    """Noise levels of the calls, as listed."""

    kind: Literal["listed"]
    sigmas: Annotated[Many[Sigma], Field(min_length=1, max_length=64)] = Field(description="descending, one per call")

    @model_validator(mode="after")
    def _descend(self) -> ListedTimes:
        if any(later >= sigma for sigma, later in zip(self.sigmas, self.sigmas[1:], strict=False)):
            raise ValueError(f"sigmas {list(self.sigmas)} do not descend")
        return self


class LcmTimes(Section):
    """LCMScheduler with the teacher's noise levels: `set_timesteps(calls)`, and fresh noise between them."""

    kind: Literal["lcm"]
    original_inference_steps: Annotated[Integer, Field(ge=1, le=10**4)] | None = Field(
        None,
        description="of LCMScheduler; null = the teacher's number of timesteps. For 4 calls of Stable Diffusion, null "
        "gives timesteps 999, 749, 499, 249; 50, which is LCMScheduler's default, gives 999, 759, 499, 259",
    )


class FlowEulerTimes(Section):
    """The calls of FlowMatchEulerDiscreteScheduler for a teacher of rectified flow: `set_timesteps(calls)`."""

    kind: Literal["flow-match-euler"]
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = Field(None, description="of times; null = the teacher's")
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="time of the last call: without it several calls end near 0, at noise of almost nothing"
    )


class Adversarial(Section):
    """The GAN loss of DMD2 (Yin et al. 2024, Section 4.3): a head on the fake denoiser's bottleneck judges images."""

    student_weight: Weight = Field(3.0e-3, description="in the student's loss; 0 = off")
    fake_weight: Weight = Field(1.0e-2, description="in the loss of head and fake denoiser; 0 = off")
    r1: Weight = Field(
        0.0, description="weight of the squared gradient of the logits of real images, within fake_weight"
    )


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

    fake_updates: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        5, description="updates of the fake denoiser per update of the student"
    )


class Dmd2(MethodSection):
    """DMD2 (Yin et al. 2024): matching without pairs, for one or several calls, and a GAN loss with images."""

    refuses: ClassVar[tuple[str, ...]] = ("shard_parameters",)  # the GAN loss makes passes of half a network
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
    weighting: Literal["eq8", "sigma/alpha", "sigma3/alpha", "sigma2/alpha"] = Field(
        "eq8", description="w_t of the matching gradient, as in method dmd"
    )
    alpha_factor: bool = Field(False, description="true: keep alpha_t of DMD's Eqs. 7 and 8")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    decoupled: Decoupled | None = Field(
        None, description="weights and noise levels of guidance and matching; null = the guided real score as in dmd"
    )
    adversarial: Adversarial | None = Field(None, description="GAN loss, which reads images; null = none")
    batch_size: Batch = Field(280, description="images in each loss")
    phases: Annotated[Many[Dmd2Phase], Field(min_length=1)] = (Dmd2Phase(updates=200000),)

    @model_validator(mode="after")
    def _fits(self) -> Dmd2:
        if isinstance(self.times, ListedTimes) and len(self.times.sigmas) != self.calls:
            raise ValueError(f"times.sigmas: {len(self.times.sigmas)} noise levels for calls {self.calls}")
        if isinstance(self.times, LcmTimes) and (most := self.times.original_inference_steps or 64) < self.calls:
            raise ValueError(
                f"times.original_inference_steps: {most} for calls {self.calls}: LCMScheduler needs as many"
            )
        if isinstance(self.times, FlowEulerTimes) and self.times.shift_terminal and self.calls == 1:
            raise ValueError("times.shift_terminal: it is the time of the last of several calls, but calls is 1")
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

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Every number from 1 to `calls`, since each call of the training ends at an image."""
        return {number + 1: WEIGHTS for number in range(self.calls)}

    def final_calls(self) -> int:
        """`calls`."""
        return self.calls

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator), fake denoiser (fake score), and the head of the GAN loss."""
        head = {"head": Role(Source.NEW, Mode.TRAINED)} if self.gan else {}
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "fake": Role(Source.START, Mode.TRAINED),
            **head,
        }

    def reads(self) -> frozenset[str]:
        """Images, for the GAN loss."""
        return frozenset({"images"} if self.gan else ())


class TdmPhase(Phase):
    """A phase of TDM."""

    fake_updates: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        1, description="updates of the fake denoiser per update of the student"
    )


class Tdm(MethodSection):
    """Trajectory Distribution Matching (Luo et al. 2025): a student of several calls with DDIM steps between them."""

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        STUDENT: {"learning_rate": 4.0e-6, "betas": (0.0, 0.95)},
        "fake": {"learning_rate": 2.0e-5},
    }
    name: Literal["tdm"]
    calls: Annotated[Integer, Field(ge=1, le=64)] = Field(4, description="network calls of the student")
    times: Annotated[KarrasTimes | ListedTimes | FlowEulerTimes, Field(discriminator="kind")] = Field(
        KarrasTimes(kind="karras"), description="noise levels of the calls, as in method dmd2"
    )
    levels: Levels = Field(KarrasLevels(), description="noise levels of matching and fake loss, split by the calls")
    weighting: Literal["eq8", "sigma/alpha", "sigma3/alpha", "sigma2/alpha"] = Field(
        "eq8", description="w_t of the matching gradient, as in method dmd"
    )
    alpha_factor: bool = Field(False, description="true: keep alpha_t of DMD's Eqs. 7 and 8")
    huber: Scale | None = Field(
        None, description="c of a pseudo-Huber loss, 0.001 in the authors' code; null = squared error, as in method dmd"
    )
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    batch_size: Batch = Field(64, description="images in each loss")
    phases: Annotated[Many[TdmPhase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Tdm:
        if isinstance(self.times, ListedTimes) and len(self.times.sigmas) != self.calls:
            raise ValueError(f"times.sigmas: {len(self.times.sigmas)} noise levels for calls {self.calls}")
        if isinstance(self.times, FlowEulerTimes) and self.times.shift_terminal and self.calls == 1:
            raise ValueError("times.shift_terminal: it is the time of the last of several calls, but calls is 1")
        return self

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Only `calls`: fewer calls end at an image that still has noise."""
        return {self.calls: WEIGHTS}

    def final_calls(self) -> int:
        """`calls`."""
        return self.calls

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator) and fake denoiser (fake score)."""
        return {
            TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "fake": Role(Source.START, Mode.TRAINED),
        }


Method = Annotated[Dmd | Dmd2 | Tdm | Progressive | Consistency | Sid, Field(discriminator="name")]
