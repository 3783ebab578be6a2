"""The spec of each rule: the numbers of a job, exactly the keys that its stage takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dmd.checks import unknown_experiment
from dmd.config import ConfigError, Json
from dmd.distill_section import learnt_from

SECTIONS = {
    "text_encoder": "teacher",
    "autoencoder": "teacher",
    "tiny_autoencoder": "teacher.tiny_autoencoder",
    "pairs_manifest": "pairs",
    "samples_manifest": "sample",
    "captions": "sample.prompts",
    "features": "sample",
    "inception_score": "evaluate",
    "clip": "evaluate.clip",
    "latency": "evaluate.latency",
    "pictures": "distill",
    "sheet": "sample",
    "export": "distill",
    "pipeline": "distill",
    "lora": "distill.adapter",
}
IMPORTED = ("edm", "diffusers", "openai", "stable-diffusion")  # teachers that come from files and need no dataset
SCORE_RULES = ("evaluate", "inception_score", "clip", "latency")
TEXT_RULES = ("prompts", "captions")
PARTS = ("text_encoder", "autoencoder", "tiny_autoencoder")  # what a teacher of latents may have besides its denoiser
UNCOMPUTED = ("pairs_manifest", "samples_manifest", "export", "pipeline", "lora", *SCORE_RULES, *TEXT_RULES, *PARTS)


class Specs:
    """Sections of merged experiments, as `dmd.config.resolve` returned them, and the specs made of them.

    Every method raises ConfigError for an unknown experiment or one without the section that a rule needs.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.merged: dict[str, Json] = config["experiments"]

    def section(self, experiment: str, name: str) -> Json:
        """One section of a merged experiment; "sample.prompts" is one within another."""
        outer, _, key = name.rpartition(".")
        whole = self.section(experiment, outer) if outer else self.whole(experiment)
        if key not in whole:
            place = f'experiment "{experiment}"{f", section {outer}," if outer else ""}'
            raise ConfigError(f'{place} has no section "{key}"; it has: {", ".join(whole)}')
        return whole[key]

    def whole(self, experiment: str) -> Json:
        """A merged experiment."""
        if experiment not in self.merged:
            raise ConfigError(unknown_experiment(experiment, self.merged))
        return self.merged[experiment]

    def spec(self, experiment: str, rule: str, block: tuple[int, int] | None = None) -> Json:
        """The numbers of one job, exactly the keys its stage takes; `block` for rules that make shards."""
        whole = self.whole(experiment)
        section = self.section(experiment, SECTIONS.get(rule, rule))
        spec: Json = getattr(self, f"_{rule}")(experiment, section)
        if rule not in UNCOMPUTED:
            if rule != "teacher" or spec["kind"] == "train":  # all other teachers are given, not computed
                spec |= {"device": whole["device"], "threads": whole["threads"]}
        if rule in ("pairs", "sample") and block is not None:
            spec |= {"first": block[0], "last": block[1]}
        return spec

    def _teacher(self, experiment: str, section: Json) -> Json:
        if section["kind"] in IMPORTED:
            latent = {"latent": True} if section.get("latent") else {}
            return without(section, "file", "folder", "tiny_autoencoder", "latent") | latent
        return {**section, "dataset": self.section(experiment, "dataset")}

    def _text_encoder(self, experiment: str, section: Json) -> Json:
        if section["kind"] != "stable-diffusion":
            raise ConfigError(f"{experiment}.teacher: kind {section['kind']} has no text encoder")
        return {"sha256": section["sha256"]}

    def _autoencoder(self, experiment: str, section: Json) -> Json:
        if section["kind"] != "stable-diffusion" and not section.get("latent"):
            raise ConfigError(f"{experiment}.teacher: kind {section['kind']} of pixels has no autoencoder")
        return {"kind": section["kind"], "sha256": section["sha256"]}

    def _tiny_autoencoder(self, experiment: str, section: Json) -> Json:
        return {"kind": "tiny", "sha256": section["sha256"]}

    def _reference(self, experiment: str, section: Json) -> Json:
        moments = section.get("moments")
        return {
            **section,
            "features": _seen(section["features"]),
            **({"moments": without(moments, "file")} if moments else {"dataset": self.section(experiment, "dataset")}),
            "num_samples": self.section(experiment, "sample")["num_samples"],
        }

    def _prompts(self, experiment: str, section: Json) -> Json:
        files = {"files": [without(each, "file") for each in section["files"]]} if "files" in section else {}
        return {"source": without(section, "file") | files}

    _captions = _prompts

    def _pairs(self, experiment: str, section: Json) -> Json:
        return _computed(_switched(without(section, "num_pairs", "shards_per_job")))

    def _pairs_manifest(self, experiment: str, section: Json) -> Json:
        return {"num": section["num_pairs"], "shard_size": section["shard_size"]}

    def _distill(self, experiment: str, section: Json) -> Json:
        return _computed(learnt_from(section))

    def _sample(self, experiment: str, section: Json) -> Json:
        weights = section["weights"] if section["from"] == "generator" else "ema"
        kept = _switched(without(section, "from", "repetitions", "shards_per_job", "prompts", "lora"))
        kept |= {"lora": without(section["lora"], "file")} if section["lora"] else {}
        return _computed({**kept, "weights": weights})

    def _samples_manifest(self, experiment: str, section: Json) -> Json:
        return {"num": section["num_samples"] * section["repetitions"], "shard_size": section["shard_size"]}

    def _features(self, experiment: str, section: Json) -> Json:
        reference = self.section(experiment, "reference")
        features = without(_seen(reference["features"]), "batch_size")
        batch_size = reference["features"].get("batch_size", section["batch_size"])
        clip = self.whole(experiment).get("evaluate", {}).get("clip")
        judged = {"clip": {**without(clip, "folder"), "name": PurePath(clip["folder"]).name}} if clip else {}
        return {"features": features, "protocol": reference["protocol"], "batch_size": batch_size, **judged}

    def _evaluate(self, experiment: str, section: Json) -> Json:
        return {**without(section, "inception_score", "clip", "latency"), "experiment": experiment}

    def _latency(self, experiment: str, section: Json) -> Json:
        whole, sample = self.whole(experiment), self._sample(experiment, self.section(experiment, "sample"))
        kept: Json = {key: sample[key] for key in ("solver", "weights", "guidance") if key in sample}
        measured = {"experiment": experiment, "device": whole["device"], "threads": whole["threads"]}
        return {**without(section, "decoder"), **kept, **measured}

    def _clip(self, experiment: str, section: Json) -> Json:
        return {"experiment": experiment}

    def _inception_score(self, experiment: str, section: Json) -> Json:
        features = self.section(experiment, "reference")["features"]
        if (kind := features["kind"]) != "inception":
            raise ConfigError(f"{experiment}.reference.features: an Inception Score needs kind inception, not {kind}")
        if (resize := features["resize"]) != "tf":
            raise ConfigError(f"{experiment}.reference.features.resize: an Inception Score is of tf, not {resize}")
        return {**section["inception_score"], "experiment": experiment}

    def _pictures(self, experiment: str, section: Json) -> Json:
        sample = self.section(experiment, "sample")
        kept = {key: sample[key] for key in ("weights", "first_seed")}  # noise of the samples, never of the pairs
        pairs = self.section(experiment, "pairs")
        return _switched({"solver": pairs["solver"], "guidance": pairs["guidance"], **kept})

    def _sheet(self, experiment: str, section: Json) -> Json:
        return {}

    def _lora(self, experiment: str, section: Json | None) -> Json:
        if section is None:
            raise ConfigError(f"{experiment}.distill.adapter: null, so there is no adapter to write")
        return {}

    def _pipeline(self, experiment: str, section: Json) -> Json:
        weights = self.whole(experiment).get("sample", {}).get("weights", "ema")
        return {"weights": weights, "experiment": experiment}

    def _export(self, experiment: str, section: Json) -> Json:
        whole = self.whole(experiment)
        return {"weights": whole.get("sample", {}).get("weights", "ema"), "threads": whole["threads"]}


def _switched(section: Json) -> Json:
    """A section of drawn images without what is off: a spec of before there was guidance does not mention it."""
    off = {"guidance": 1.0, "dtype": "float32"}
    return {key: value for key, value in section.items() if key not in off or value != off[key]}


def _computed(section: Json) -> Json:
    """`compute` as far as it is switched on: the spec of plain float32 passes does not mention it."""
    changed = {key: value for key, value in section["compute"].items() if value not in (None, False, "float32")}
    return without(section, "compute") | ({"compute": changed} if changed else {})


def _seen(features: Json) -> Json:
    """Section `features` without its path, and without `resize` where that is the network's own."""
    changed = {} if features.get("resize", "tf") == "tf" else {"resize": features["resize"]}
    return without(features, "file", "resize") | changed


def without(section: Json, *keys: str) -> Json:
    return {key: value for key, value in section.items() if key not in keys}
