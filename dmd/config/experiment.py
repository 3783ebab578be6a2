"""An experiment with the checks across its sections, and the other parts of the configuration file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dmd.config.messages import suggestion
from dmd.config.method_base import TEACHER, MethodSection, Mode
from dmd.config.methods.call_times import LcmTimes
from dmd.config.methods.dfno import Dfno
from dmd.config.methods.dmd import Dmd
from dmd.config.pipeline_sections import Pipeline
from dmd.config.printing import piece
from dmd.config.section_base import SIGMA_MAX, Count, Integer, Many, Path, Pinned, Section, refuse
from dmd.config.sections import (
    CaptionPrompts,
    Dataset,
    Evaluate,
    FlowSolver,
    GlyphDataset,
    ImageDataset,
    MixtureDataset,
    MixtureTeacher,
    OdeSolver,
    Pairs,
    PixelFeatures,
    Prompts,
    Reference,
    Sample,
    ScheduledSolver,
    States,
    Teacher,
    TrainedTeacher,
)
from dmd.config.source_files import is_below
from dmd.config.training import Distill, Monitor

INPUTS = "inputs"  # the folder that files are downloaded to
NAME = "^[a-z0-9][a-z0-9-]*$"
RESERVED = ("tables", "logs")  # folders of results/ that are not experiments
MAX_BYTES = 10**11  # of what is held in memory at once: the pixels of a batch or a shard, weights, a covariance
MORE = f"more than the {MAX_BYTES / 1e9:.0f} GB that are held at once"
SCHEDULED_KINDS = ("stable-diffusion", "diffusers")  # kinds of teachers that come with a scheduler of diffusers
TEXT_KINDS = ("stable-diffusion",)  # kinds of text-to-image teachers; their images are latents


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name} is a reserved folder of results/: take another name")
    return name


Name = Annotated[str, Field(pattern=NAME), AfterValidator(_not_reserved)]


class JobResources(Section):
    """Resources to ask a cluster for; null is the default of the rule."""

    memory_mb: Count | None = Field(None, description="main memory; of a training, for each process")
    hours: Annotated[float, Field(ge=0.02, le=1e5)] | None = Field(
        None, description="time limit of a job; the cluster profile overrules distill's"
    )


class DistillResources(JobResources):
    """Resources that a distillation asks a cluster for; null is the default of the rule."""

    nodes: Annotated[Integer, Field(ge=1, le=10**5)] = Field(
        1, description="number of nodes; each runs an equal part of distill.processes"
    )


class Resources(Section):
    """Resources to ask a cluster for, per job of a rule; they do not change results."""

    images: JobResources = JobResources()
    teacher: JobResources = JobResources()
    text_encoder: JobResources = JobResources()
    autoencoder: JobResources = JobResources()
    tiny_autoencoder: JobResources = JobResources()
    pipeline_text: JobResources = JobResources()
    pipeline_autoencoder: JobResources = JobResources()
    pipeline_latents: JobResources = JobResources()
    pipeline_denoiser: JobResources = JobResources()
    pipeline: JobResources = JobResources()
    pipeline_clip: JobResources = JobResources()
    reference: JobResources = JobResources()
    prompts: JobResources = JobResources()
    captions: JobResources = JobResources()
    states: JobResources = JobResources()
    states_manifest: JobResources = JobResources()
    pairs: JobResources = JobResources()
    pairs_manifest: JobResources = JobResources()
    distill: DistillResources = DistillResources()
    sample: JobResources = JobResources()
    samples_manifest: JobResources = JobResources()
    features: JobResources = JobResources()
    evaluate: JobResources = JobResources()
    inception_score: JobResources = JobResources()
    clip: JobResources = JobResources()
    retrieval: JobResources = JobResources()
    latency: JobResources = JobResources()
    pictures: JobResources = JobResources()
    sheet: JobResources = JobResources()
    export_onnx: JobResources = JobResources()
    export_pipeline: JobResources = JobResources()
    export_lora: JobResources = JobResources()


class Experiment(Section):
    """One experiment, after inheritance."""

    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one, else the CPU")
    threads: Annotated[Integer, Field(ge=1, le=4096)] = Field(
        1, description="torch threads; another number changes results in their last bits"
    )
    resources: Resources = Resources()
    dataset: Dataset | None = Field(None, description="real images, for training and for scores")
    teacher: Teacher | None = Field(None, description="the diffusion model that is distilled")
    pipeline: Pipeline | None = Field(None, description="a Stable Diffusion to train, which can become a teacher")
    reference: Reference | None = None
    prompts: Prompts | None = Field(None, description="prompts of the pairs, or of section states")
    states: States | None = None
    pairs: Pairs | None = None
    distill: Distill | None = Field(None, description="training of the student")
    sample: Sample | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_empty_section(cls, value: Any) -> Any:
        if isinstance(value, dict):
            empty = [key for key, section in value.items() if section is None and key in cls.model_fields]
            refuse(f"{key}: null is not a section: leave the key out" for key in empty)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        refuse(
            [
                *self._data_contradictions(),
                *self._text_contradictions(),
                *self._distill_contradictions(),
                *self._too_large(),
            ]
        )
        return self

    def _too_large(self) -> Iterator[str]:
        """What is held in memory at once and has more than `MAX_BYTES`, where its size is known."""
        teacher = self.teacher if isinstance(self.teacher, TrainedTeacher) else None
        if teacher and (size := 4 * teacher.network.least_weights) > MAX_BYTES:
            yield f"teacher.network.width: the weights are {size / 1e9:,.0f} GB, {MORE}"
        if isinstance(self.dataset, ImageDataset | GlyphDataset):
            yield from self._too_many_pixels(self.dataset, teacher)

    def _too_many_pixels(self, dataset: ImageDataset | GlyphDataset, teacher: TrainedTeacher | None) -> Iterator[str]:
        side, sizes = dataset.resolution, dict[str, int]()
        for name, section in (("pairs", self.pairs), ("sample", self.sample)):
            if section:
                states = 1 + getattr(section, "kept_states", 0)
                sizes |= {f"{name}.batch_size": section.batch_size * states, f"{name}.shard_size": section.shard_size}
        training = teacher.training if teacher else None
        for name, each in (("teacher.training", training), ("distill", self.distill)):
            if each:
                batches = each.method.batch_sizes().items()
                sizes |= {f"{name}.method.{key}": num // each.processes for key, num in batches}
        for key, num in sizes.items():
            if (size := 4 * dataset.channels * side**2 * num) > MAX_BYTES:
                images = f"{num} images of {side} x {side} pixels (dataset.resolution)"
                yield f"{key}: {images} are {size / 1e9:,.0f} GB, {MORE}"
        features = self.reference.features if self.reference else None
        if isinstance(features, PixelFeatures) and (size := 8 * (dataset.channels * features.size**2) ** 2) > MAX_BYTES:
            yield f"reference.features.size: {features.size}: their covariance is {size / 1e9:,.0f} GB, {MORE}"

    def _data_contradictions(self) -> Iterator[str]:
        """Contradictions between the dataset and other sections, and between ranges of seeds."""
        dataset, reference = self.dataset, self.reference
        all_held_out = isinstance(dataset, ImageDataset) and dataset.num_held_out == "all"
        if isinstance(self.teacher, MixtureTeacher) and not isinstance(dataset, MixtureDataset):
            kind = dataset.kind if dataset else None
            yield f"teacher.kind: gaussian-mixture needs a dataset of that kind, not {kind}"
        if isinstance(self.teacher, TrainedTeacher) and all_held_out:
            yield "dataset.num_held_out: all images are held out, so teacher.kind train has none to train on"
        if reference and not reference.moments and dataset is None:
            yield "reference: it needs a section dataset, or reference.moments with a file of mean and covariance"
        if reference and not reference.moments and "against" in reference.model_fields_set and all_held_out:
            yield f"reference.against: {reference.against} is a split, but dataset.num_held_out is all"
        if self.pipeline:
            yield from self._pipeline_contradictions(self.pipeline)
        if self.evaluate and self.evaluate.clip and not (self.sample and self.sample.prompts):
            yield "evaluate.clip: it needs sample.prompts, the captions that images are compared with"
        yield from self._too_few_samples()
        if self.pairs and self.sample:
            samples, pairs = self.sample.seeds, self.pairs.seeds
            if max(samples.start, pairs.start) < min(samples.stop, pairs.stop):
                yield (
                    f"sample.first_seed: seeds {samples.start}..{samples.stop - 1} of the samples overlap "
                    f"{pairs.start}..{pairs.stop - 1} of the pairs: scores need noise that is new to the student"
                )

    def _pipeline_contradictions(self, pipeline: Pipeline) -> Iterator[str]:
        """Contradictions between section pipeline and the dataset."""
        if not self.has_captions:
            yield "pipeline: it needs a dataset with captions"
            return
        assert isinstance(self.dataset, ImageDataset | GlyphDataset)
        if self.dataset.num_held_out == "all":
            yield "dataset.num_held_out: all images are held out, so pipeline has none to train on"
        if self.dataset.channels != 3:
            yield f"dataset.channels: {self.dataset.channels}, but pipeline needs images in colour: 3"
        side, patch = self.dataset.resolution, pipeline.text.image.patch_size
        if side % patch:
            yield f"pipeline.text.image.patch_size: {patch} does not divide dataset.resolution {side}"
        if (autoencoder := pipeline.autoencoder) is None:
            return
        levels = len(pipeline.denoiser.widths) - 1 if pipeline.denoiser else 0
        if side % (autoencoder.scale * 2**levels):
            halved = f"{len(autoencoder.widths) - 1} times by the autoencoder and {levels} times by the denoiser"
            yield f"dataset.resolution: {side} cannot be halved {halved}"

    def _too_few_samples(self) -> Iterator[str]:
        """Settings of scores that need more samples than there are."""
        evaluate, num = self.evaluate, self.sample.num_samples if self.sample else None
        if evaluate is None or num is None:
            return
        if evaluate.neighbours >= num and "neighbours" in evaluate.model_fields_set:
            yield f"evaluate.neighbours: {evaluate.neighbours} must be below sample.num_samples {num}"
        if evaluate.kid_subset is not None and evaluate.kid_subset > num:
            yield f"evaluate.kid_subset: {evaluate.kid_subset} is more than sample.num_samples {num}"

    @property
    def monitor_features(self) -> Section | None:
        """The section of the features that the monitor of the distillation measures in; None if it reads none."""
        monitor = self.distill and self.distill.monitor
        return self.reference.features if monitor and monitor.features and self.reference else None

    @property
    def monitor_clip(self) -> Section | None:
        """The section of the CLIP with which the monitor compares images and prompts; None if it does not."""
        monitor = self.distill and self.distill.monitor
        return self.evaluate.clip if monitor and monitor.clip and self.evaluate else None

    @property
    def makes_latents(self) -> bool:
        """Whether the teacher works on latents."""
        return self.teacher is not None and (
            self.teacher.kind in TEXT_KINDS or bool(getattr(self.teacher, "latent", False))
        )

    @property
    def _guidable(self) -> bool:
        """Whether the teacher also works without a condition; that of a file may, its stage tells."""
        dropout = isinstance(self.teacher, TrainedTeacher) and self.teacher.training.method.label_dropout
        return bool(dropout) or (self.teacher is not None and self.teacher.kind in ("file", *TEXT_KINDS))

    @property
    def _unguided(self) -> str:
        kind = self.teacher.kind if self.teacher else "none"
        reason = "was trained without label_dropout" if kind == "train" else "does not support guidance"
        return f"a teacher of kind {kind} {reason}"

    @property
    def has_captions(self) -> bool:
        """Whether the images of the dataset have captions."""
        return getattr(self.dataset, "captions", "none") != "none"

    def _text_contradictions(self) -> Iterator[str]:
        """Prompts, guidance or schedulers that do not fit the kind of teacher."""
        for key, prompts in (("prompts", self.prompts), ("sample.prompts", self.sample and self.sample.prompts)):
            if isinstance(prompts, CaptionPrompts) and not self.has_captions:
                yield f"{key}: kind captions needs a dataset with captions"
            elif isinstance(prompts, CaptionPrompts) and getattr(self.dataset, "num_held_out", None) == "all":
                yield f"{key}: kind captions reads those of training images, but dataset.num_held_out is all"
        if self.teacher is None:
            return
        kind = self.teacher.kind
        text = kind in TEXT_KINDS
        for section, key, prompts in (
            (self.pairs, "pairs", self.prompts),
            (self.sample, "sample", self.sample and self.sample.prompts),
        ):
            if section is None:
                continue
            if bool(prompts) != text:
                prompts_key = "prompts" if key == "pairs" else "sample.prompts"
                verb = "needs" if text else "takes no"
                yield f"{prompts_key}: a teacher of kind {kind} {verb} prompts for section {key}"
            from_teacher = getattr(section, "source", "teacher") == "teacher"
            if section.guidance != 1 and from_teacher and not self._guidable:
                yield f"{key}.guidance: {section.guidance}, but {self._unguided}"
            if isinstance(section.solver, ScheduledSolver | FlowSolver) and kind not in SCHEDULED_KINDS:
                name = section.solver.name
                yield f"{key}.solver.name: {name} needs the scheduler of the teacher, but kind {kind} has none"

    def _distill_contradictions(self) -> Iterator[str]:
        """Contradictions of the distillation with pairs, teacher and nodes."""
        if self.distill is None:
            return
        method, nodes = self.distill.method, self.resources.distill.nodes
        if self.distill.processes % nodes:
            processes = self.distill.processes
            yield f"resources.distill.nodes: distill.processes {processes} is not divisible by {nodes} nodes"
        yield from self._calls_contradictions(method)
        yield from self._monitor_contradictions(method, self.distill.monitor)
        if isinstance(method, Dmd):
            yield from self._too_few_pairs(method)
        if method.starts_from_pairs:
            yield from self._pairs_contradictions(getattr(method, "sigma", None))
        if isinstance(method, Dfno) and self.pairs and method.states != self.pairs.kept_states:
            yield (
                f"distill.method.states: {method.states}, but pairs.kept_states is {self.pairs.kept_states}: they must "
                "be equal"
            )
        if self.teacher is None:
            return
        kind = self.teacher.kind
        lcm = isinstance(getattr(method, "times", None), LcmTimes)
        if lcm and self.distill.start is None and kind not in SCHEDULED_KINDS:
            yield f"distill.method.times.kind: lcm needs the scheduler of the teacher, but kind {kind} has none"
        if kind in TEXT_KINDS and self.states is None and self.pairs is None:
            yield "distill: text states come from section pairs or states, and there is neither"
        changing = [name for name, role in method.roles().items() if role.mode is not Mode.FROZEN]
        guidance = method.roles()[TEACHER].guidance if TEACHER in method.roles() else 1
        if guidance != 1 and not self._guidable:
            yield f"distill.method.guidance: {guidance}, but {self._unguided}"
        decoder_key = f"distill.method.{method.distance_key()}.decoder"
        for name in [decoder for decoder in method.decoders() if decoder != "none"]:
            if name == "tiny" and getattr(self.teacher, "tiny_autoencoder", None) is None:
                yield f"{decoder_key}: tiny, but section teacher has no tiny_autoencoder"
            if not self.makes_latents:
                yield f"{decoder_key}: a teacher of kind {kind} makes no latents"
        if kind == "gaussian-mixture" and TEACHER in changing:
            yield f"distill.method.name: {method.name} changes the teacher's weights, but gaussian-mixture has none"
        if "images" in method.reads():
            yield from self._image_contradictions(method)

    def _image_contradictions(self, method: MethodSection) -> Iterator[str]:
        """Contradictions between a method that reads images and the teacher or dataset."""
        name, dataset = f"distill.method.name: {method.name} learns from images, but", self.dataset
        if self.teacher is not None and self.makes_latents:
            remedy = ": set distill.method.data to pairs" if hasattr(method, "data") else ""
            yield f"{name} a teacher of kind {self.teacher.kind} makes latents{remedy}"
        elif isinstance(dataset, ImageDataset) and dataset.num_held_out == "all":
            yield f"{name} dataset.num_held_out is all, so there are none to train on"

    def _calls_contradictions(self, method: MethodSection) -> Iterator[str]:
        """Contradictions between sample.calls and the weights in the student's file."""
        sample, weights = self.sample, method.calls_kept()
        if sample is None or sample.calls is None:
            return
        if sample.calls not in weights:
            supported = ", ".join(map(str, sorted(weights)))
            yield f"sample.calls: {sample.calls}, but a student of method {method.name} supports only {supported}"
        elif sample.weights not in weights[sample.calls]:
            yield f"sample.weights: {sample.weights}, but for {sample.calls} calls the file holds averaged weights only"

    def _monitor_contradictions(self, method: MethodSection, monitor: Monitor | None) -> Iterator[str]:
        """Contradictions between distill.monitor and sections teacher, reference, evaluate and sample."""
        best = monitor and monitor.best
        if self.sample and self.sample.source == "generator" and self.sample.weights == "best" and not best:
            yield "sample.weights: best, but these weights are kept only if distill.monitor.best names a number"
        if monitor is None:
            return
        key, clip = "distill.monitor", self.evaluate.clip if self.evaluate else None
        if monitor.best == "same_noise" and method.final_calls() > 1:
            yield f"{key}.best: same_noise, but the student makes {method.final_calls()} calls, with noise between them"
        if monitor.clip and clip is None:
            yield f"{key}.clip: true, but section evaluate has no clip"
        if self.teacher is None:
            return
        if monitor.clip and self.teacher.kind not in TEXT_KINDS:
            yield f"{key}.clip: true, but a teacher of kind {self.teacher.kind} takes no prompts"
        if not self.makes_latents:
            return
        if monitor.decoder == "tiny" and getattr(self.teacher, "tiny_autoencoder", None) is None:
            yield f"{key}.decoder: tiny, but section teacher has no tiny_autoencoder"
        if monitor.decoder == "none" and (monitor.clip or (monitor.features and self.reference)):
            read = "clip: true" if monitor.clip else "features: reference"
            yield f"{key}.decoder: none, but {read} needs decoded images: set features: null and clip: false"

    def _too_few_pairs(self, method: Dmd) -> Iterator[str]:
        """Phases of DMD that read more pairs, or text states in their place, than there are."""
        reads = "pairs" in method.reads()
        num, section = (self.states.num_states, "states") if self.states and not reads else (None, "pairs")
        num = self.pairs.num_pairs if self.pairs and num is None else num
        for index, phase in enumerate(method.phases):
            if num is not None and (phase.num_pairs or 0) > num:
                yield f"distill.method.phases[{index}].num_pairs: {phase.num_pairs}, but section {section} has {num}"

    def _pairs_contradictions(self, sigma: float | None) -> Iterator[str]:
        """Contradictions of the pairs and the noise level of the student's input."""
        if sigma is None or self.pairs is None:
            return
        solver, key = self.pairs.solver, "distill.method.sigma"
        if not isinstance(solver, OdeSolver):
            yield f"{key}: {sigma}, but {solver.name} starts at the teacher's highest level: write null"
        elif sigma != (start := solver.sigma_max or SIGMA_MAX):
            yield (
                f"{key}: {sigma} differs from pairs.solver.sigma_max {start}, "
                "but the student must start at the noise level of the pairs"
            )


class Published(Section):
    """The row of the published table `paper` with the same setting; it shows the value of this row, too."""

    label: str = Field(description="of the published row")
    dataset: str | None = Field(None, description="of the published row, if its label occurs twice")


NumSeeds = Annotated[
    Literal["all"] | Annotated[Integer, Field(ge=1, le=10**4)],
    Field(description="how many of the seeds of an experiment count, from the first on"),
]


class Row(Section):
    """A row of a table: the mean over its experiments, and their spread."""

    label: str = Field(description="first column")
    experiments: Annotated[Many[str], Field(min_length=1, description="one with `seeds` includes all of them")]
    seeds: NumSeeds | None = Field(None, description="how many of its seeds count; null: as many as in the table")
    run: bool = Field(True, description="false: show existing scores, and start no jobs for missing ones")
    published: Published | None = None


class Table(Section):
    """results/tables/NAME.md and .csv."""

    title: str = Field("", description="heading above the table")
    seeds: NumSeeds = "all"
    paper: str | None = Field(
        None, description="table of workflow/resources/published_values.yaml to print below this one"
    )
    rows: Annotated[Many[Row], Field(min_length=1)]
    differences: Many[Annotated[tuple[str, str], Field(strict=False)]] = Field(
        (),
        description="labels of two rows each: mean difference over seeds (retrieval: prompts), with an interval",
    )

    @model_validator(mode="after")
    def _fits(self) -> Table:
        labels = [row.label for row in self.rows]
        for index, pair in enumerate(self.differences):
            for label in pair:
                if labels.count(label) != 1:
                    number = "several rows have" if label in labels else f"no row has{suggestion(label, labels)}"
                    raise ValueError(f'differences[{index}]: "{label}" is a label that {number}')
        return self


class Series(Section):
    """A line of a chart; each point is the mean over its experiments."""

    label: str = Field(description="in the legend")
    points: Annotated[Many[Annotated[Many[str], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="for each point, its experiments"
    )


class Chart(Section):
    """results/tables/NAME.png."""

    kind: Literal["calls", "pairs", "figure3", "images"] = Field(
        description="x axis: network calls or number of pairs; figure3: points of toy2d; images: a row of samples for "
        "each point, all from the same noise"
    )
    title: str = Field("", description="above the chart")
    seeds: NumSeeds = "all"
    value: Literal["distance", "excess"] = Field(
        "distance", description="y axis of calls and pairs; excess: the distance over the floor"
    )
    series: Annotated[Many[Series], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Chart:
        if self.value == "excess" and self.kind not in ("calls", "pairs"):
            raise ValueError(f"value: excess is for kinds calls and pairs, not {self.kind}")
        return self


class Input(Section):
    """A file or folder from outside: a run downloads it from `url`, or someone puts it there from `page`."""

    url: str | None = Field(None, pattern="^https?://", description="to download from; null: someone puts it there")
    page: str | None = Field(None, pattern="^https?://", description="where a person finds what has no url")
    file: Path | None = Field(None, description="path of a file, below inputs/ if it has a url; sections refer to it")
    folder: Path | None = Field(None, description="path of a folder, which has no url")
    sha256: Pinned
    size: Annotated[Integer, Field(ge=1, le=10**16)] | None = Field(
        None, description="bytes; exact and checked for a download, about for what someone puts there; null = unknown"
    )
    about: str = Field("", description="what it is, for the list of missing files")
    licence: str = Field("", description="for the list of missing files")

    @property
    def path(self) -> str:
        """Of the file or folder."""
        return str(self.file or self.folder)

    @model_validator(mode="after")
    def _fits(self) -> Input:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if (self.file is None) == (self.folder is None):
            yield "lacks one of the keys file and folder" if self.file is None else "folder: stands beside file"
        elif self.url is not None and self.file is not None:
            yield from self._unfit_to_download(self.file)
        if self.folder is not None and self.url is not None:
            yield f"url: {self.url} is one file, which cannot become a folder: name a page"
        if self.folder is not None and self.sha256 is not None:
            yield "sha256: stands in the sections that name the folder, not here"

    def _unfit_to_download(self, file: str) -> Iterator[str]:
        parts = pathlib.PurePath(os.path.normpath(file)).parts
        if parts[:1] != (INPUTS,) or len(parts) < 2:
            yield f"file: {piece(file)} is not below {INPUTS}/, the only folder to download to"
        elif any(part.startswith(".") for part in parts):
            yield f"file: {piece(file)} is hidden, as records of files are: take another name"
        elif {"{", "}"} & {*file} or not file.isprintable():
            yield f"file: {piece(file)} has braces or a line break, which a rule cannot make"


class Storage(Section):
    """Object storage for shards of pairs, in addition to results/; in no spec."""

    prefix: str = Field(
        pattern=r"^(s3|gs|https?)://[^/@?#]+(/[^?#]*)?$",
        description="s3:// or gs:// with bucket and folder, or http(s)://, which is read-only; no password, since logs "
        "show it: see docs/storage.md",
    )
    endpoint: str | None = Field(
        None,
        pattern="^https?://[^/@?#]+$",
        description="server of an s3:// or gs:// prefix; null = AWS or Google",
    )
    cache: Path = Field(".cache/shards", description="folder for copies of read shards, relative to config.yaml")
    cache_gb: Annotated[float, Field(gt=0, le=1e9)] = Field(
        200.0, description="10^9 bytes; the least recently used copies are removed first"
    )
    keep: bool = Field(True, description="false: shards are removed from results/ after their upload")

    @model_validator(mode="after")
    def _fits(self) -> Storage:
        refuse(self._contradictions())
        return self

    def settings(self) -> Any:
        """The section as JSON values, with the local folder that the prefix mirrors, for a stage."""
        return {**self.with_defaults(), "folder": "results"}

    def _contradictions(self) -> Iterator[str]:
        if self.prefix.startswith("http") and not self.keep:
            yield f"keep: false, but {self.prefix} is read-only: shards drawn here could not be stored"
        if self.prefix.startswith("http") and self.endpoint:
            yield f"endpoint: {self.endpoint}, but {self.prefix} already names its server"
        cache, results = os.path.realpath(self.cache), os.path.realpath("results")
        if is_below(cache, results):
            yield f"cache: {piece(self.cache)} is in results/, where only the workflow writes"
        elif is_below(os.path.realpath("."), cache) or is_below(results, cache):
            yield f"cache: {piece(self.cache)} holds the project or its results: take a folder of its own"


class File(Section):
    """config.yaml with its included files; experiments are checked after inheritance, as `Experiment`."""

    include: Many[Path] = Field((), description="further files, relative to this one")
    experiments: dict[Name, dict[str, Any]] = Field(description="sections of each, or `extends` and changed keys")
    tables: dict[Name, Table] = {}
    charts: dict[Name, Chart] = {}
    inputs: dict[Name, Input] = {}
    storage: Storage | None = None

    @model_validator(mode="after")
    def _fits(self) -> File:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        """Inputs that name the same file."""
        owners: dict[str, str] = {}
        for name, entry in self.inputs.items():
            if (other := owners.setdefault(entry.path, name)) != name:
                key = "file" if entry.file else "folder"
                yield f"inputs.{name}.{key}: {entry.path} is also the path of inputs.{other}"
