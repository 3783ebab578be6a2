"""Sections of an experiment besides its trainings. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from dmd.config.section_base import (
    NUM_SEEDS,
    UNSET_PATH,
    Batch,
    Count,
    Decay,
    Digest,
    Guidance,
    Integer,
    Many,
    Path,
    Pinned,
    Rho,
    Scale,
    Section,
    Seed,
    ShardSize,
    Side,
    Sigma,
    Steps,
    Weight,
    refuse,
)
from dmd.config.training import Compute, TeacherTraining

IMPORTED = (
    "file",
    "edm",
    "diffusers",
    "openai",
    "stable-diffusion",
)  # kinds of teachers from files, which need no dataset
MAX_SHARDS = 10**5  # their names have five digits; the paper has 12,000 of pairs
DECODERS = {"tiny": "tiny_autoencoder", "full": "autoencoder"}  # decoder of latents -> the rule that makes it


def _count_or_all(value: Any, handler: Any) -> Any:
    """Validates a count or "all"; a fault gives one message instead of one per type."""
    try:
        return handler(value)
    except ValueError:
        raise ValueError(f"{value!r} is neither a count of at least 1 nor 'all'") from None


NoiseSeed = Annotated[Seed, Field(description="of the first noise; the others count up from it")]
TeacherGuidance = Annotated[Guidance, Field(description="classifier-free guidance of the teacher; 1 = none")]
Width = Annotated[Integer, Field(ge=1, le=8192)]
Depth = Annotated[Integer, Field(ge=1, le=100)]
Points = Annotated[Integer, Field(ge=1, le=10**8)]
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
Point = Annotated[tuple[Coordinate, Coordinate], Field(strict=False)]
Text = Annotated[str, Field(min_length=1)]
PinnedFolder = Annotated[
    str | None,
    Field(
        pattern="^[0-9a-f]{8,64}$",
        description="digest of the folder (source_sha256 in artifacts made from it), or its first digits; null = any",
    ),
]

Variant = Annotated[
    str | None,
    Field(
        pattern=r"^\w{1,32}$",
        description="of the weights, such as fp16; null = the plain weights, or else the only variant in the folder",
    ),
]

SHARD_SIZE = Field(10000, description="images in one tar")


class DigitsDataset(Section):
    """scikit-learn's handwritten digits, 8x8 pixels."""

    kind: Literal["digits"]
    split_seed: Seed = Field(0, description="of the split into training and held-out images")
    num_training: Annotated[Integer, Field(ge=1, le=1796)] = Field(
        1000, description="images to train on; the rest of the 1,797 is held out"
    )
    shard_size: ShardSize = SHARD_SIZE


class ImageDataset(Section):
    """A folder of images."""

    kind: Literal["images"]
    folder: Path = Field(UNSET_PATH, description="relative to config.yaml; sub-folders are searched, too")
    labels: Path = Field(
        "none",
        pattern=r"^(none|folders|[\s\S]*\.csv)$",
        description="none, folders (a class per sub-folder) or the path of a .csv file",
    )
    resolution: Side = Field(description="side in pixels, after crop and resize")
    channels: Literal[1, 3] = Field(3, description="1 = grey")
    resize: Literal["lanczos", "bicubic", "box"] = Field("lanczos", description="filter of the resizing")
    crop: Literal["center", "none"] = Field("center", description="center: largest square; none: refuse other images")
    split_seed: Seed = Field(0, description="seed of the split into training and held-out images")
    shard_size: ShardSize = SHARD_SIZE
    num_held_out: Annotated[Count | Literal["all"], WrapValidator(_count_or_all)] = Field(
        description="images kept from training, to compare with; all: none is left to train on"
    )
    captions: Path = Field(
        "none",
        pattern=r"^(none|[\s\S]*\.csv)$",
        description="path of a .csv file with the columns file and caption, a row per caption, and optionally split: "
        "training or held_out; none: there are no captions",
    )


class GlyphDataset(Section):
    """Characters drawn from a font on white squares, with captions."""

    kind: Literal["glyphs"]
    file: Path = Field(UNSET_PATH, description="a font: TrueType or OpenType, also with colour bitmaps")
    sha256: Pinned = None
    captions: Path = Field(
        pattern=r"^[\s\S]*\.csv$",
        description="path of a .csv file with the columns codepoint (hexadecimal) and caption, a row per caption, and "
        "optionally split: training or held_out",
    )
    resolution: Side = Field(description="side in pixels")
    split_seed: Seed = Field(0, description="seed of the split into training and held-out glyphs")
    shard_size: ShardSize = SHARD_SIZE
    num_held_out: Count = Field(description="glyphs kept from training, to compare with")

    @property
    def channels(self) -> int:
        """Pictures are in colour."""
        return 3


class IdxDataset(Section):
    """The four IDX files of MNIST, Fashion-MNIST, KMNIST or EMNIST, plain or gzipped; their own split is the split."""

    kind: Literal["idx"]
    folder: Path = Field(UNSET_PATH, description="where the four files lie, relative to config.yaml")
    training_images: Text = Field("train-images-idx3-ubyte.gz", description="file in the folder")
    training_labels: Text = Field("train-labels-idx1-ubyte.gz", description="file in the folder")
    held_out_images: Text = Field("t10k-images-idx3-ubyte.gz", description="file in the folder")
    held_out_labels: Text = Field("t10k-labels-idx1-ubyte.gz", description="file in the folder")
    resolution: Side = Field(28, description="side in pixels that the images must have")
    transpose: bool = Field(False, description="true: rows and columns are swapped, as EMNIST needs")
    sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{8,64}$",
            description="digest over the uncompressed contents of the four files, which the log of stage images has, "
            "or its first digits; null = any",
        ),
    ] = None
    shard_size: ShardSize = SHARD_SIZE

    def files(self) -> dict[str, str]:
        """Path of each file by its key."""
        keys = ("training_images", "training_labels", "held_out_images", "held_out_labels")
        return {key: os.path.normpath(os.path.join(self.folder, getattr(self, key))) for key in keys}


class MixtureDataset(Section):
    """Points of a Gaussian mixture in the plane."""

    kind: Literal["gaussian-mixture"]
    means: Annotated[Many[Point], Field(min_length=1, max_length=1000)] = Field(description="of the components")
    stds: Annotated[Many[Scale], Field(min_length=1)] = Field(description="of the components")
    weights: Annotated[Many[Scale], Field(min_length=1)] = Field(
        description="of the components; normalised to a sum of 1"
    )
    num_training: Points = Field(description="points to train on")
    num_held_out: Points = Field(description="points to compare samples with")
    seed: Seed = Field(0, description="of the points")
    shard_size: ShardSize = SHARD_SIZE

    @model_validator(mode="after")
    def _fits(self) -> MixtureDataset:
        lengths = {key: len(getattr(self, key)) for key in ("means", "stds", "weights")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"means, stds and weights differ in length: {lengths}")
        return self


class UNet(Section):
    """The U-Nets of EDM (Karras et al. 2022) and ADM (Dhariwal and Nichol 2021)."""

    @property
    def least_weights(self) -> int:
        """A number of weights that it has at least: two 3x3 convolutions per block."""
        return sum(18 * self.blocks * (self.width * multiplier) ** 2 for multiplier in self.multipliers)

    kind: Literal["adm", "ddpmpp", "ncsnpp"] = Field(description="ADM, DDPM++ or NCSN++")
    width: Width = Field(description="channels at multiplier 1")
    multipliers: Annotated[Many[Depth], Field(min_length=1, max_length=16)] = Field(
        description="of the width, one per level; each level has half the resolution of the one before"
    )
    blocks: Depth = Field(description="residual blocks per level")
    attention: Many[Side] = Field(description="resolutions with attention")
    dropout: Decay = Field(0.0, description="probability")
    patch: Annotated[Integer, Field(ge=1, le=64)] = Field(
        1,
        description="side of the squares of pixels that the network takes as channels of one: with 2 the first level "
        "has half the resolution of the images",
    )


class Mlp(Section):
    """A multilayer perceptron, for points in the plane."""

    @property
    def least_weights(self) -> int:
        """A number of weights that it has at least."""
        return (self.layers - 1) * self.width**2

    kind: Literal["mlp"]
    width: Width = Field(description="features of a hidden layer")
    layers: Depth = Field(description="hidden layers")


class TrainedTeacher(Section):
    """A denoiser trained on the dataset."""

    kind: Literal["train"]
    network: Annotated[UNet | Mlp, Field(discriminator="kind")] = Field(description="architecture")
    training: TeacherTraining


class MixtureTeacher(Section):
    """The exact denoiser of a dataset of kind gaussian-mixture."""

    kind: Literal["gaussian-mixture"]


class FileTeacher(Section):
    """A teacher that was trained here and written by `dmd.stages.teacher_file`."""

    kind: Literal["file"]
    file: Path = Field(UNSET_PATH, description="such as workflow/resources/fashion.safetensors")
    sha256: Pinned = None


class EdmTeacher(Section):
    """A network file released by NVIDIA with EDM."""

    kind: Literal["edm"]
    file: Path = Field(UNSET_PATH, description="a .pkl of the release")
    sha256: Pinned = None


class OpenaiTeacher(Section):
    """The EDM teacher of the consistency models (Song et al. 2023), as OpenAI released it."""

    kind: Literal["openai"]
    file: Path = Field(UNSET_PATH, description="edm_imagenet64_ema.pt")
    sha256: Pinned = None
    resolution: Side = Field(64, description="side of the images, which is not in the file")


class DiffusersTeacher(Section):
    """A pipeline saved by diffusers."""

    kind: Literal["diffusers"]
    folder: Path = Field(UNSET_PATH, description="relative to config.yaml")
    sha256: PinnedFolder = None
    variant: Variant = None
    latent: bool = Field(False, description="true: the pipeline works on latents of its vae, an AutoencoderKL")


class ExperimentTeacher(Section):
    """The student of another experiment, a denoiser at all noise levels: of `rectified-flow` with reflow, or `meng`."""

    kind: Literal["experiment"]
    name: str = Field(description="the experiment")
    weights: Literal["ema", "raw", "best"] = Field(
        "ema", description="moving average, last update, or the average that distill.monitor rated best"
    )


class TinyAutoencoder(Section):
    """An AutoencoderTiny saved by diffusers, which decodes latents faster."""

    folder: Path = Field(UNSET_PATH, description="relative to config.yaml")
    sha256: PinnedFolder = None
    variant: Variant = None


class StableDiffusionTeacher(Section):
    """A Stable Diffusion pipeline saved by diffusers."""

    kind: Literal["stable-diffusion"]
    folder: Path = Field(UNSET_PATH, description="relative to config.yaml")
    sha256: PinnedFolder = None
    variant: Variant = None
    tiny_autoencoder: TinyAutoencoder | None = None


class ClassifierFeatures(Section):
    """The small classifiers of digits and of Fashion-MNIST in this repository."""

    kind: Literal["digits32", "fashion64"] = Field(description="of digits (8x8), or of Fashion-MNIST (28x28)")
    file: Path = Field(UNSET_PATH, description="of the classifier")
    sha256: Digest = Field(description="of the file")


class CoordinateFeatures(Section):
    """The coordinates of points."""

    kind: Literal["coordinates"]


class PixelFeatures(Section):
    """Pixels of the image after averaging to a lower resolution."""

    kind: Literal["pixels"]
    size: Side = Field(8, description="side in pixels after averaging")


class InceptionFeatures(Section):
    """The Inception network of 2015 (Szegedy et al.) that defines FID."""

    kind: Literal["inception"]
    file: Path = Field(UNSET_PATH, description="weights as released by torch-fidelity or pytorch-fid")
    sha256: Pinned = None
    batch_size: Batch = Field(64, description="images at once, enlarged to 299x299")
    resize: Literal["tf", "clean"] = Field(
        "tf", description="to 299x299; tf: by the network itself; clean: as clean-fid (Pillow, bicubic)"
    )


class Resize(Section):
    """Resizing of 8-bit images before the feature network."""

    size: Side = Field(description="of both sides, in pixels")
    filter: Literal["lanczos", "bicubic", "box"] = Field("lanczos", description="Pillow's filter")


class Protocol(Section):
    """Processing of images before the feature network."""

    quantise: Annotated[Integer, Field(ge=2, le=2**16)] | None = Field(
        None, description="levels per channel; null = float images"
    )
    resize: Resize | None = None

    @model_validator(mode="after")
    def _fits(self) -> Protocol:
        if self.resize and self.quantise != 256:
            raise ValueError(f"resize: it works on 8-bit images, so quantise must be 256, not {self.quantise}")
        return self


class Moments(Section):
    """A .npz of mean (mu) and covariance (sigma) of real features, instead of a dataset."""

    file: Path = Field(UNSET_PATH, description=".npz with the arrays mu and sigma")
    sha256: Pinned = None


class Reference(Section):
    """The real data that samples are compared with."""

    features: Annotated[
        ClassifierFeatures | CoordinateFeatures | PixelFeatures | InceptionFeatures, Field(discriminator="kind")
    ] = Field(description="network in whose features samples and real data are compared")
    protocol: Protocol = Protocol()
    moments: Moments | None = Field(None, description="in place of a dataset; null drops an inherited section")
    against: Literal["held_out", "training"] = Field("held_out", description="split that samples are compared with")
    floor_draws: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        20, description="random draws whose mean distance is the floor"
    )
    seed: Seed = Field(0, description="seed of these draws")

    @model_validator(mode="after")
    def _fits(self) -> Reference:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.moments and "against" in self.model_fields_set:
            yield f"against: {self.against} is a split of a dataset, but reference.moments replaces the dataset"
        if self.features.kind == "inception" and self.protocol.quantise != 256:
            levels = self.protocol.quantise
            yield f"protocol.quantise: {levels}, but features of kind inception need 8-bit images: 256"


class PromptFile(Section):
    """All rows of a table, in their order."""

    kind: Literal["file"]
    file: Path = Field(UNSET_PATH, description="Parquet table")
    sha256: Pinned = None
    column: Text = Field("prompt", description="name of the column with the prompts")


class CocoPrompts(Section):
    """The first caption of each of `num` randomly chosen images."""

    kind: Literal["coco"]
    file: Path = Field(UNSET_PATH, description="annotations/captions_val2014.json")
    sha256: Pinned = None
    num: Count | None = Field(None, description="null = all images")
    seed: Seed = Field(0, description="of the choice of images")


class PinnedFile(Section):
    """A file that the workflow does not make."""

    file: Path = Field(UNSET_PATH, description="relative to config.yaml")
    sha256: Pinned = None


class LaionPrompts(Section):
    """Distinct prompts from rows with a score of at least `threshold`, in a random order."""

    kind: Literal["laion"]
    files: Annotated[Many[PinnedFile], Field(min_length=1, description="Parquet tables")]
    text_column: Text = Field("TEXT", description="name of the column with the prompts")
    score_column: Text = Field("AESTHETIC_SCORE", description="name of the column with the scores")
    threshold: Coordinate = Field(description="lowest score of a prompt")
    num: Count | None = Field(None, description="number of prompts; null = all")
    seed: Seed = Field(0, description="of the order")


class CaptionPrompts(Section):
    """The distinct captions of the dataset's training images, in a random order."""

    kind: Literal["captions"]
    split: Literal["training", "held_out"] = Field("training", description="of the captions, as their table names it")
    num: Count | None = Field(None, description="number of captions; null = all")
    seed: Seed = Field(0, description="of the order")


class KarrasSolver(Section):
    """A sampler on the noise levels of Karras et al. 2022, Eq. 5."""

    name: str
    steps: Steps = Field(18, description="number of noise levels above 0")
    sigma_min: Sigma | None = Field(None, description="lowest level above 0; null = 0.002 or, if higher, the teacher's")
    sigma_max: Sigma | None = Field(None, description="the first level; null = 80 or, if lower, the teacher's highest")
    rho: Rho = Field(7.0, description="of Karras et al. 2022, Eq. 5: larger means denser levels near sigma_min")


class OdeSolver(KarrasSolver):
    """Heun's method as in EDM (Karras et al. 2022, Algorithm 1), Euler's, or a multistep solver."""

    name: Literal["heun", "euler", "dpmsolver++2m", "unipc-2m"] = Field(
        description="heun: 2 * steps - 1 network calls; euler, dpmsolver++2m (Lu et al. 2022), unipc-2m (Zhao et al. "
        "2023): a call per step"
    )


class ChurnSolver(KarrasSolver):
    """The stochastic sampler of EDM (Karras et al. 2022, Algorithm 2): Heun's steps, each from a raised noise level."""

    name: Literal["heun-churn"] = Field(description="2 * steps - 1 network calls")
    churn: Weight = Field(description="S_churn: a step raises sigma by churn / steps of itself, at most by 0.414")
    churn_min: Weight = Field(0.0, description="S_tmin: lowest sigma that is raised")
    churn_max: Sigma = Field(1.0e6, description="S_tmax: highest sigma that is raised")
    churn_noise: Scale = Field(1.0, description="S_noise: standard deviation of the noise")


class AncestralSolver(KarrasSolver):
    """Ancestral sampling (Ho et al. 2020), with the variance of the posterior."""

    name: Literal["ancestral"] = Field(description="a call per step")


class ScheduledSolver(Section):
    """A scheduler of diffusers with the noise levels of the teacher."""

    name: Literal["pndm", "ddim", "dpmsolver++", "unipc", "heun-discrete", "euler-discrete", "lcm"] = Field(
        description="scheduler"
    )
    steps: Steps = Field(
        description="asked of the scheduler; pndm and heun-discrete make more network calls than steps"
    )
    spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="of timesteps; null: the scheduler's default"
    )


class StudentSolver(Section):
    """Sampling by the network calls of a student."""

    name: Literal["student"]


class FlowSolver(Section):
    """Euler steps of a rectified flow (Liu et al. 2023)."""

    name: Literal["rectified-flow"]
    steps: Steps = Field(description="network calls")


PairSolver = Annotated[OdeSolver | ScheduledSolver, Field(discriminator="name")]
SampleSolver = Annotated[
    StudentSolver | OdeSolver | ChurnSolver | AncestralSolver | ScheduledSolver | FlowSolver,
    Field(discriminator="name"),
]
Dataset = Annotated[
    DigitsDataset | ImageDataset | IdxDataset | GlyphDataset | MixtureDataset, Field(discriminator="kind")
]
Teacher = Annotated[
    TrainedTeacher
    | FileTeacher
    | MixtureTeacher
    | EdmTeacher
    | DiffusersTeacher
    | OpenaiTeacher
    | StableDiffusionTeacher
    | ExperimentTeacher,
    Field(discriminator="kind"),
]
Prompts = Annotated[PromptFile | CocoPrompts | LaionPrompts | CaptionPrompts, Field(discriminator="kind")]


class Pairs(Section):
    """Pairs of noise and the image that the teacher's ODE leads to from it."""

    num_pairs: Count = Field(description="a multiple of shard_size")
    shard_size: ShardSize = Field(description="pairs in one tar")
    shards_per_job: Count = Field(1, description="shards that one job draws")
    first_seed: NoiseSeed = 2147483648
    batch_size: Batch = Field(64, description="images in a pass")
    labels: Literal["random", "balanced"] = Field("random", description="balanced: each class equally often")
    solver: PairSolver = Field(OdeSolver(name="heun"), description="of the teacher's ODE")
    guidance: TeacherGuidance = 1.0
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="of the images on disk; noise is float32, text states are float16"
    )
    kept_states: Annotated[Integer, Field(ge=0, le=10**5)] = Field(
        0,
        description="states saved per trajectory, after evenly spaced steps of heun, euler, dpmsolver++2m or unipc-2m; "
        "the last is the image",
    )
    compute: Compute = Compute()

    @property
    def seeds(self) -> range:
        """Seeds of the noise."""
        return range(self.first_seed, self.first_seed + self.num_pairs)

    @model_validator(mode="after")
    def _fits(self) -> Pairs:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from _uneven("num_pairs", self.num_pairs, self.shard_size)
        yield from _seeds_at_end(self.seeds)
        if self.kept_states and not isinstance(self.solver, OdeSolver):
            yield (
                f"kept_states: {self.kept_states}, but solver {self.solver.name} saves no states: "
                "use heun, euler, dpmsolver++2m or unipc-2m"
            )
        elif self.kept_states > self.solver.steps:
            yield f"kept_states: {self.kept_states} states, but the solver makes {self.solver.steps} steps"


class States(Section):
    """Text states of prompts, for a text-to-image distillation without pairs."""

    num_states: Count = Field(description="number of states; if there are fewer prompts, they are repeated")
    shard_size: ShardSize = Field(description="text states in one tar")
    shards_per_job: Count = Field(1, description="shards that one job makes")

    @model_validator(mode="after")
    def _fits(self) -> States:
        refuse(_uneven("num_states", self.num_states, self.shard_size))
        return self


class Lora(Section):
    """A published LoRA, such as LCM-LoRA (pytorch_lora_weights.safetensors), added to the teacher's weights."""

    file: Path = Field(UNSET_PATH, description="safetensors, in a layout of diffusers or of kohya")
    sha256: Pinned = None
    scale: Annotated[float, Field(ge=-1000, le=1000)] = Field(1.0, description="factor on the LoRA")


class Sample(Section):
    """Images of the student or of the teacher, to be scored."""

    source: Literal["generator", "teacher"] = Field("generator", alias="from", description="what is sampled")
    weights: Literal["ema", "raw", "best"] = Field(
        "ema",
        description="of a generator: moving average, last update, or the average that distill.monitor rated best",
    )
    calls: Steps | None = Field(
        None, description="network calls, if the student supports several numbers; null = that at the end of training"
    )
    lora: Lora | None = None
    solver: SampleSolver = Field(
        StudentSolver(name="student"), description="student for the generator; any other for the teacher"
    )
    prompts: Prompts | None = Field(None, description="captions to draw images for, with a text-to-image teacher")
    guidance: Guidance = Field(
        1.0,
        description="classifier-free guidance of the teacher, or of a student that takes the guidance as an input; "
        "1 = none",
    )
    num_samples: Count = Field(description="per repetition")
    repetitions: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        1, description="sets of samples with different noise, each scored separately"
    )
    shard_size: ShardSize = Field(description="samples in one tar")
    shards_per_job: Count = Field(1, description="shards that one job draws")
    first_seed: NoiseSeed = 0
    batch_size: Batch = Field(64, description="images in a pass")
    labels: Literal["random", "balanced"] = Field("random", description="balanced: each class equally often")
    num_shown: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        20, description="images of the teacher, and as many of the student, in pictures/grid.png"
    )
    compute: Compute = Compute()

    @property
    def seeds(self) -> range:
        """Seeds of the noise of all repetitions."""
        return range(self.first_seed, self.first_seed + self.num_samples * self.repetitions)

    @model_validator(mode="after")
    def _fits(self) -> Sample:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from _uneven("num_samples", self.num_samples, self.shard_size, self.repetitions)
        yield from _seeds_at_end(self.seeds)
        generated = self.source == "generator"
        if generated != (self.solver.name == "student"):
            needed = "student" if generated else "heun or euler, or a scheduler"
            yield f"solver.name: from {self.source} needs {needed}, not {self.solver.name}"
        if not generated and self.calls is not None:
            yield f"calls: {self.calls}, but sample.from is teacher: use solver.steps"
        if generated and self.lora is not None:
            yield f"lora: {self.lora.file}, but sample.from is generator, and only a teacher takes a LoRA"


class InceptionScore(Section):
    """Settings of the Inception Score, which is computed on request."""

    splits: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        10, description="parts of the samples, each with a score of its own"
    )
    seed: Seed = Field(2020, description="seed of the shuffle, torch-fidelity's")


class Clip(Section):
    """CLIP score of samples and their captions (sample.prompts), in clip.json."""

    folder: Path = Field(
        UNSET_PATH, description="CLIPModel, tokenizer and image processor, saved by transformers as safetensors"
    )
    sha256: PinnedFolder = Field(
        None,
        description="digest over names and contents of its files, as in clip.json, or its first digits; null = any, "
        "and the metric is named after the folder",
    )
    variant: Variant = None
    prefix: str = Field("A photo depicts ", description="put before each caption")
    resize: Resize | None = Field(
        None,
        description="of 8-bit images, before the network's own bicubic one; {size: 256} = as DMD2 evaluates images of "
        "512 pixels; null = none",
    )


class Latency(Section):
    """Settings of latency.json, which is measured on request."""

    batch_sizes: Annotated[Many[Batch], Field(min_length=1)] = Field(
        (1,), description="images at once; tables show the first size"
    )
    repeats: Annotated[Integer, Field(ge=1, le=10**6)] = Field(
        30, description="measured batches, of which the median is taken"
    )
    warmup: Annotated[Integer, Field(ge=0, le=10**6)] = Field(5, description="batches before the measured ones")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float16",
        description="precision of weights and activations; the paper says float16 only of its 20 images per second",
    )
    decoder: Literal["full", "tiny"] = Field(
        "full", description="full: the teacher's autoencoder; tiny: teacher.tiny_autoencoder"
    )


class Evaluate(Section):
    """Scores of samples."""

    neighbours: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        3, description="k of precision, recall, density and coverage"
    )
    kid_subset: Annotated[Integer, Field(ge=2, le=10**6)] | None = Field(
        None, description="samples in each of 100 random subsets (torch-fidelity: 1000); null = one set of all samples"
    )
    inception_score: InceptionScore = InceptionScore()
    clip: Clip | None = None
    latency: Latency = Latency()
    seed: Seed = Field(0, description="seed of the KID subsets")


def _uneven(key: str, num: int, shard_size: int, repetitions: int = 1) -> Iterator[str]:
    if num % shard_size:
        yield f"{key}: {num} is not a multiple of shard_size {shard_size}"
    elif (shards := num * repetitions // shard_size) > MAX_SHARDS:
        yield f"shard_size: {shard_size} makes {shards} shards, more than {MAX_SHARDS}: raise it"


def _seeds_at_end(seeds: range) -> Iterator[str]:
    if seeds.stop > NUM_SEEDS:
        most = NUM_SEEDS - len(seeds)
        yield (
            f"first_seed: seeds {seeds.start}..{seeds.stop - 1} exceed the largest seed, {NUM_SEEDS - 1}; "
            + (f"first_seed may be at most {most}" if most >= 0 else f"there are only {NUM_SEEDS} for all images")
        )
