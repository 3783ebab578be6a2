"""One table of all rules: the spec of each, the paths of its artifacts, and the version of its stage.

Raise a version when the same inputs and spec give other bytes, or when a default of a section changes, since the
specs of many rules leave defaults out. Snakemake does not see changes of the code behind `python -m`, but reruns a
job when the version changes, which every rule passes as a parameter. For one method alone there is
`MethodSection.version`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from dmd.config.experiment import Experiment
from dmd.config.messages import ConfigError
from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.reading import Json
from dmd.config.section_base import Section, without_paths
from dmd.config.sections import IMPORTED, InceptionFeatures

METRICS = ("fid", "kid", "prdc", "classes", "memorisation")
FOLDER = (  # files of a Stable Diffusion besides model_index.json
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
PIPELINE = ("README.md", *FOLDER)  # files of export/pipeline/ besides model_index.json
CLIP = (  # files of pipeline/clip/ besides config.json
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.json",
)
TABLES = "tables"  # a folder of results/; no experiment may have this name
TABLE_KINDS = frozenset({".md", ".csv", ".png"})


@dataclass(frozen=True)
class Named:
    """A merged experiment and its name."""

    name: str
    sections: Experiment

    def section(self, place: str) -> Any:
        """A section, or a nested one, such as "sample.prompts".

        Raises:
            ConfigError: the section is missing; the message names those that the experiment has.
        """
        section: Any = self.sections
        outer = ""
        for key in place.split("."):
            fields = type(section).model_fields.items()
            there = [field.alias or name for name, field in fields if getattr(section, name) is not None]
            if key not in there:
                where = f'experiment "{self.name}"{f", section {outer}," if outer else ""}'
                raise ConfigError(f'{where} has no section "{key}"; it has: {", ".join(there)}')
            section, outer = getattr(section, key), f"{outer}.{key}".lstrip(".")
        return section


@dataclass(frozen=True)
class Rule:
    """One rule of workflow/rules/.

    Attributes:
        stage: module of dmd.stages that its job runs.
        version: of that stage; rules of one stage have the same.
        section: the section that configures the rule; None for a rule that belongs to no experiment.
        spec: makes the spec of a job from an experiment and that section; `Experiments.spec` adds device and threads
            where `computed` is true, and the block.
        files: paths of its artifacts below the folder of the experiment, the main one first.
        tars: path of its shards, if it writes shards.
        blocks: whether it makes a block of shards per job.
        computed: whether a job uses the threads and the GPU of the experiment and has both keys in its spec.
        threads, gpu: whether a job uses these although `computed` is false.
        memory_mb: main memory, for a training per process.
        minutes: time limit on a cluster.
        shown: the column of `dmd.status` that it belongs to.
        on_request: whether fid.json does not depend on it.
    """

    stage: str
    version: int
    section: str | None = None
    spec: Callable[[Named, Any], Json] = lambda experiment, section: {}
    files: tuple[str, ...] = ()
    tars: str | None = None
    blocks: bool = False
    computed: bool = False
    threads: bool = False
    gpu: bool = False
    memory_mb: int = 2000
    minutes: int = 60
    shown: str = ""
    on_request: bool = False


def _teacher(experiment: Named, section: Any) -> Json:
    if section.kind in IMPORTED:
        return {key: value for key, value in without_paths(section.spec()).items() if key != "tiny_autoencoder"}
    if section.kind == "experiment":
        return {"kind": section.kind, "weights": section.weights}
    spec = section.with_defaults()
    if section.kind != "train":
        return spec | {"dataset": _dataset(experiment)}
    sections = experiment.sections
    if spec["network"].get("patch") == 1:  # teachers that were trained before the key existed stay valid
        del spec["network"]["patch"]
    return spec | {"training": section.training.weight_spec(), "device": sections.device, "threads": sections.threads}


def _dataset(experiment: Named) -> Json:
    return _without(without_paths(experiment.section("dataset").with_defaults()), "shard_size")


def _images(experiment: Named, section: Any) -> Json:
    dataset = section.with_defaults()
    no_captions = {"captions"} if dataset.get("captions") == "none" else set()
    return {"dataset": _without(dataset, "shard_size", *no_captions), "shard_size": section.shard_size}


def _text_encoder(experiment: Named, section: Any) -> Json:
    if section.kind != "stable-diffusion":
        raise ConfigError(f"{experiment.name}.teacher: kind {section.kind} has no text encoder")
    return {"sha256": section.sha256, **_variant(section)}


def _autoencoder(experiment: Named, section: Any) -> Json:
    if section.kind != "stable-diffusion" and not getattr(section, "latent", False):
        raise ConfigError(f"{experiment.name}.teacher: kind {section.kind} of pixels has no autoencoder")
    return {"kind": section.kind, "sha256": section.sha256, **_variant(section)}


def _tiny_autoencoder(experiment: Named, section: Any) -> Json:
    return {"kind": "tiny", "sha256": section.sha256, **_variant(section)}


def _variant(section: Any) -> Json:
    """The key `variant` of a folder of weights, where it is set."""
    return {"variant": section.variant} if section.variant else {}


def _part(experiment: Named, section: Any) -> Json:
    """The spec of a part of section pipeline, without the keys of its training that do not change the weights."""
    spec: Json = section.spec()
    return spec | {"training": section.training.weight_spec()} if hasattr(section, "training") else spec


def _reference(experiment: Named, section: Any) -> Json:
    spec = without_paths(section.spec()) | {"features": _features_of(section)}
    if section.moments:
        spec |= {"moments": {"sha256": section.moments.sha256}}
    return spec | {"num_samples": experiment.section("sample").num_samples}


def _features_of(reference: Any) -> Json:
    return without_paths(reference.features.with_defaults())


def _prompts(experiment: Named, section: Section) -> Json:
    return {"source": without_paths(section.with_defaults())}


def _pairs(experiment: Named, section: Section) -> Json:
    return _without(section.spec(), "num_pairs", "shards_per_job")


def _states(experiment: Named, section: Any) -> Json:
    return {"shard_size": section.shard_size}


def _states_manifest(experiment: Named, section: Any) -> Json:
    return {"num": section.num_states, "shard_size": section.shard_size}


def _pairs_manifest(experiment: Named, section: Any) -> Json:
    return {"num": section.num_pairs, "shard_size": section.shard_size}


def _distill(experiment: Named, section: Any) -> Json:
    """The section, and what of other sections the monitor reads."""
    spec, features, clip = section.weight_spec(), experiment.sections.monitor_features, experiment.sections.monitor_clip
    if features is not None:
        spec["features"] = _without(without_paths(features.with_defaults()), "batch_size")
    if clip is not None:
        spec["clip"] = _clip(clip)
    return spec


def _clip(section: Any) -> Json:
    clip = _without(without_paths(section.with_defaults()), "variant")
    return {**clip, **_variant(section), "name": PurePath(section.folder).name}


def _sample(experiment: Named, section: Any) -> Json:
    spec = _without(without_paths(section.spec()), "from", "repetitions", "shards_per_job", "prompts", "num_shown")
    if section.lora:
        spec["lora"] = without_paths(section.lora.with_defaults())
    return spec if section.source == "generator" else _without(spec, "weights")


def _samples_manifest(experiment: Named, section: Any) -> Json:
    return {"num": section.num_samples * section.repetitions, "shard_size": section.shard_size}


def _features(experiment: Named, section: Any) -> Json:
    reference, evaluate = experiment.section("reference"), experiment.sections.evaluate
    features = _features_of(reference)
    batch_size = features.pop("batch_size", section.batch_size)
    spec = {"features": features, "protocol": reference.protocol.with_defaults(), "batch_size": batch_size}
    if evaluate and evaluate.clip:
        spec["clip"] = _clip(evaluate.clip)
    return spec


def _evaluate(experiment: Named, section: Section) -> Json:
    return {**_without(section.spec(), "inception_score", "clip", "latency"), "experiment": experiment.name}


def _inception_score(experiment: Named, section: Section) -> Json:
    features = experiment.section("reference").features
    if not isinstance(features, InceptionFeatures):
        raise ConfigError(
            f"{experiment.name}.reference.features: an Inception Score needs kind inception, not {features.kind}"
        )
    if features.resize != "tf":
        raise ConfigError(
            f"{experiment.name}.reference.features.resize: an Inception Score needs resize tf, not {features.resize}"
        )
    return {**section.spec(), "experiment": experiment.name}


def _scored(experiment: Named, section: Section) -> Json:
    return {"experiment": experiment.name}


def _retrieval(experiment: Named, section: Section) -> Json:
    return {"clip": _clip(section), "experiment": experiment.name}


def _latency(experiment: Named, section: Section) -> Json:
    sample = _sample(experiment, experiment.section("sample"))
    kept: Json = {key: sample[key] for key in ("solver", "weights", "guidance", "calls") if key in sample}
    return {**_without(section.spec(), "decoder"), **kept, "experiment": experiment.name}


def _pictures(experiment: Named, section: Any) -> Json:
    pairs, roles = experiment.sections.pairs, section.method.roles()
    if pairs is not None:
        drawn = {"solver": pairs.solver.with_defaults(), "guidance": pairs.guidance}
    else:
        drawn = {"guidance": roles[TEACHER].guidance} if TEACHER in roles else {}
    sample: Any = experiment.section("sample")
    drawn["first_seed"] = sample.first_seed  # noise of the samples, never of pairs
    student = _student(experiment)
    if roles[STUDENT].guidance_input or "guidance" in student:  # both are drawn with the same guidance
        drawn["guidance"] = drawn_with = student.pop("guidance", 1.0)
        student |= {"student_guidance": drawn_with}
    return drawn | student | {"num_images": sample.num_shown}


def _student(experiment: Named) -> Json:
    """The weights, number of calls and guidance with which the samples are drawn."""
    sample = experiment.sections.sample
    if sample is None:
        return {"weights": "ema"}
    guidance = {"guidance": sample.guidance} if sample.source == "generator" and sample.guidance != 1 else {}
    return {"weights": sample.weights} | ({"calls": sample.calls} if sample.calls is not None else {}) | guidance


def _export_onnx(experiment: Named, section: Section) -> Json:
    return {**_student(experiment), "threads": experiment.sections.threads}


def _export_pipeline(experiment: Named, section: Section) -> Json:
    return {**_student(experiment), "experiment": experiment.name}


def _export_lora(experiment: Named, section: Any) -> Json:
    if section.adapter is None:
        raise ConfigError(f"{experiment.name}.distill.adapter: null, so there is no adapter to write")
    weights, sample = _student(experiment)["weights"], experiment.sections.sample
    if weights == "raw" and sample is not None and sample.source == "generator":
        raise ConfigError(f"{experiment.name}.sample.weights: raw, but the student's file has averaged adapters only")
    return {"weights": "best"} if weights == "best" else {}


def _without(spec: Json, *keys: str) -> Json:
    return {key: value for key, value in spec.items() if key not in keys}


RULES: dict[str, Rule] = {
    "fetch": Rule("fetch", 1),
    "images": Rule(
        "images",
        2,
        section="dataset",
        spec=_images,
        files=("images/manifest.parquet",),
        tars="images/{shard:05d}.tar",
        shown="images",
        memory_mb=4000,
        minutes=720,
    ),
    "teacher": Rule(
        "teacher",
        4,
        section="teacher",
        spec=_teacher,
        files=("teacher/denoiser.safetensors", "teacher/log.parquet"),
        shown="teacher",
        memory_mb=4000,
        minutes=720,
        gpu=True,
        threads=True,
    ),
    "text_encoder": Rule(
        "text_encoder",
        2,
        section="teacher",
        spec=_text_encoder,
        files=("teacher/text_encoder.safetensors",),
        shown="teacher",
        memory_mb=4000,
    ),
    "autoencoder": Rule(
        "autoencoder",
        1,
        section="teacher",
        spec=_autoencoder,
        files=("teacher/autoencoder.safetensors",),
        shown="teacher",
        memory_mb=4000,
    ),
    "tiny_autoencoder": Rule(
        "autoencoder",
        1,
        section="teacher.tiny_autoencoder",
        spec=_tiny_autoencoder,
        files=("teacher/tiny_autoencoder.safetensors",),
        shown="teacher",
        memory_mb=4000,
    ),
    "pipeline_text": Rule(
        "train_text",
        1,
        section="pipeline.text",
        spec=_part,
        files=(
            "pipeline/text/text_encoder.safetensors",
            "pipeline/text/image_text.safetensors",
            "pipeline/text/log.parquet",
        ),
        computed=True,
        shown="teacher",
        memory_mb=4000,
        minutes=720,
    ),
    "pipeline_autoencoder": Rule(
        "train_autoencoder",
        1,
        section="pipeline.autoencoder",
        spec=_part,
        files=("pipeline/autoencoder/autoencoder.safetensors", "pipeline/autoencoder/log.parquet"),
        computed=True,
        shown="teacher",
        memory_mb=4000,
        minutes=720,
    ),
    "pipeline_latents": Rule(
        "latents",
        1,
        section="pipeline.latents",
        spec=_part,
        files=("pipeline/latents/manifest.parquet",),
        tars="pipeline/latents/{shard:05d}.tar",
        computed=True,
        shown="teacher",
        memory_mb=4000,
        minutes=240,
    ),
    "pipeline_denoiser": Rule(
        "train_denoiser",
        1,
        section="pipeline.denoiser",
        spec=_part,
        files=("pipeline/denoiser/denoiser.safetensors", "pipeline/denoiser/log.parquet"),
        computed=True,
        shown="teacher",
        memory_mb=4000,
        minutes=720,
    ),
    "pipeline": Rule(
        "save_pipeline",
        1,
        section="pipeline.denoiser",
        files=tuple(f"pipeline/folder/{name}" for name in ("model_index.json", *FOLDER)),
        shown="teacher",
        on_request=True,
        memory_mb=4000,
    ),
    "pipeline_clip": Rule(
        "save_clip",
        1,
        section="pipeline.text",
        files=tuple(f"pipeline/clip/{name}" for name in ("config.json", *CLIP)),
        shown="teacher",
        on_request=True,
        memory_mb=4000,
    ),
    "reference": Rule(
        "reference",
        5,
        section="reference",
        spec=_reference,
        files=("reference/reference.safetensors",),
        computed=True,
        shown="reference",
        memory_mb=4000,
        minutes=120,
    ),
    "prompts": Rule(
        "prompts",
        2,
        section="prompts",
        spec=_prompts,
        files=("prompts/prompts.parquet",),
        shown="prompts",
        memory_mb=4000,
        minutes=120,
    ),
    "captions": Rule(
        "prompts",
        2,
        section="sample.prompts",
        spec=_prompts,
        files=("captions/captions.parquet",),
        shown="prompts",
        memory_mb=4000,
        minutes=120,
    ),
    "states": Rule(
        "states",
        1,
        section="states",
        spec=_states,
        files=("states/blocks/{first:05d}-{last:05d}.parquet",),
        tars="states/{shard:05d}.tar",
        blocks=True,
        computed=True,
        shown="states",
        memory_mb=4000,
        minutes=240,
    ),
    "states_manifest": Rule(
        "manifest", 1, section="states", spec=_states_manifest, files=("states/manifest.parquet",), shown="states"
    ),
    "pairs": Rule(
        "pairs",
        3,
        section="pairs",
        spec=_pairs,
        files=("pairs/blocks/{first:05d}-{last:05d}.parquet",),
        tars="pairs/{shard:05d}.tar",
        blocks=True,
        computed=True,
        shown="pairs",
        minutes=240,
    ),
    "pairs_manifest": Rule(
        "manifest", 1, section="pairs", spec=_pairs_manifest, files=("pairs/manifest.parquet",), shown="pairs"
    ),
    "distill": Rule(
        "distill",
        7,
        section="distill",
        spec=_distill,
        files=("distill/generator.safetensors", "distill/log.parquet"),
        computed=True,
        shown="distill",
        memory_mb=4000,
        minutes=1440,
    ),
    "sample": Rule(
        "sample",
        3,
        section="sample",
        spec=_sample,
        files=("samples/blocks/{first:05d}-{last:05d}.parquet",),
        tars="samples/{shard:05d}.tar",
        blocks=True,
        computed=True,
        shown="sample",
        minutes=240,
    ),
    "samples_manifest": Rule(
        "manifest",
        1,
        section="sample",
        spec=_samples_manifest,
        files=("samples/manifest.parquet",),
        shown="sample",
        on_request=True,
    ),
    "features": Rule(
        "features",
        3,
        section="sample",
        spec=_features,
        files=("features/{first:05d}-{last:05d}.safetensors",),
        blocks=True,
        computed=True,
        shown="features",
        minutes=120,
    ),
    "evaluate": Rule(
        "evaluate",
        3,
        section="evaluate",
        spec=_evaluate,
        files=tuple(f"{metric}.json" for metric in METRICS),
        shown="evaluate",
    ),
    "inception_score": Rule(
        "inception_score",
        2,
        section="evaluate.inception_score",
        spec=_inception_score,
        files=("inception_score.json",),
        shown="evaluate",
        on_request=True,
    ),
    "clip": Rule(
        "clip", 2, section="evaluate.clip", spec=_scored, files=("clip.json",), shown="evaluate", on_request=True
    ),
    "retrieval": Rule(
        "retrieval",
        3,
        section="evaluate.clip",
        spec=_retrieval,
        files=("retrieval.json",),
        computed=True,
        shown="evaluate",
        on_request=True,
        memory_mb=4000,
    ),
    "latency": Rule(
        "latency",
        2,
        section="evaluate.latency",
        spec=_latency,
        files=("latency.json",),
        computed=True,
        shown="evaluate",
        on_request=True,
        memory_mb=8000,
    ),
    "pictures": Rule(
        "pictures",
        3,
        section="distill",
        spec=_pictures,
        files=("pictures/grid.png", "pictures/training.png"),
        computed=True,
        shown="pictures",
        on_request=True,
    ),
    "sheet": Rule(
        "sheet",
        1,
        section="sample",
        files=("pictures/samples.png",),
        computed=True,
        shown="pictures",
        on_request=True,
        memory_mb=4000,
        minutes=30,
    ),
    "export_onnx": Rule(
        "export_onnx",
        1,
        section="distill",
        spec=_export_onnx,
        files=("export/generator.onnx",),
        shown="export",
        on_request=True,
        memory_mb=8000,
        threads=True,
    ),
    "export_pipeline": Rule(
        "export_pipeline",
        3,
        section="distill",
        spec=_export_pipeline,
        files=("export/pipeline/model_index.json", *(f"export/pipeline/{name}" for name in PIPELINE)),
        shown="export",
        on_request=True,
        memory_mb=16000,
    ),
    "export_lora": Rule(
        "export_lora",
        1,
        section="distill",
        spec=_export_lora,
        files=("export/pytorch_lora_weights.safetensors",),
        shown="export",
        on_request=True,
        memory_mb=16000,
    ),
    "tables": Rule("tables", 7),
    "charts": Rule("charts", 2),
}
VERSIONS = {rule.stage: rule.version for rule in RULES.values()}
ARTIFACTS = [name for name, rule in RULES.items() if rule.files]  # rules of experiments
_PATTERNS = [  # of the paths of artifacts and shards of an experiment
    re.sub(r"\{.*?\}", "[0-9]" * 5, place)
    for rule in RULES.values()
    for place in (*rule.files, *([rule.tars] if rule.tars else []))
]


def is_artifact(path: PurePath) -> bool:
    """Whether the workflow makes a file of this path, relative to the folder of results."""
    place, name = path.parts[0], PurePath(*path.parts[1:])
    if place == TABLES:
        return len(name.parts) == 1 and name.suffix in TABLE_KINDS
    return any(fnmatchcase(name.as_posix(), pattern) for pattern in _PATTERNS)
