"""The artifacts of experiments: the spec of each, what it is made from, whose it is, and where it is.

An experiment owns an artifact if the spec of its rule, or of any rule upstream, differs from the parent's; otherwise
it uses the parent's artifact, and nothing is computed twice. Ownership is per rule: an experiment with more pairs than
its parent owns its manifest, but shares the shards that both have.
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cache
from typing import Any

from dmd.config.experiment import Experiment
from dmd.config.inheritance import Configuration
from dmd.config.messages import ConfigError, unknown_experiment
from dmd.config.method_base import PAIRED
from dmd.config.reading import Json, unpinned
from dmd.config.rule_table import RULES, Named
from dmd.config.sections import DECODERS
from dmd.config.training import Training

PARTS = ("pipeline_text", "pipeline_autoencoder", "pipeline_denoiser")  # rules that train a part of section pipeline


class Experiments:
    """Look-ups over the experiments of a configuration: sections, specs, and where artifacts are.

    Methods raise ConfigError for an unknown experiment, or one without the section that a rule needs.

    Attributes:
        merged: all experiments by name.
        parents: the experiment that each one extends.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.merged = configuration.experiments
        self.parents = configuration.parents
        self.owner = cache(self._owner)
        self.upstream = cache(self._upstream)
        self._identity = cache(self._compute_identity)
        self._spec = cache(self._compute_spec)
        self.lineage = cache(self._compute_lineage)

    def sections(self, experiment: str) -> Experiment:
        """All sections of an experiment, after inheritance."""
        return self._named(experiment).sections

    def section(self, experiment: str, place: str) -> Any:
        """A section, such as "sample", or a nested one, such as "sample.prompts"."""
        return self._named(experiment).section(place)

    def _named(self, experiment: str) -> Named:
        if experiment not in self.merged:
            raise ConfigError(unknown_experiment(experiment, self.merged))
        return Named(experiment, self.merged[experiment])

    def spec(self, experiment: str, rule: str, block: tuple[int, int] | None = None) -> Json:
        """The spec of one job: the keys that its stage takes; `block` is for rules that make blocks of shards."""
        spec = copy.deepcopy(self._spec(experiment, rule))
        if RULES[rule].tars and block is not None:
            spec |= {"first": block[0], "last": block[1]}
        return spec

    def _compute_spec(self, experiment: str, rule: str) -> Json:
        named, row = self._named(experiment), RULES[rule]
        spec = row.spec(named, self._section_of(experiment, rule))
        if row.computed:
            spec |= {"device": named.sections.device, "threads": named.sections.threads}
        return spec

    def _section_of(self, experiment: str, rule: str) -> Any:
        """The section that configures a rule."""
        place = RULES[rule].section
        assert place is not None, "a rule of no experiment"
        return self.section(experiment, place)

    def has(self, experiment: str, rule: str) -> bool:
        """Whether the experiment has every section that a rule, or a rule upstream, needs."""
        self.sections(experiment)
        try:
            self._identity(experiment, rule)
        except ConfigError:
            return False
        return True

    def _upstream(self, experiment: str, rule: str) -> list[tuple[str, str]]:
        """(rule, experiment) of each artifact that a rule reads; the experiment need not be its owner."""
        sources = {
            "pairs": ["teacher", *(["prompts", "text_encoder"] if self.sections(experiment).prompts else [])],
            "states": ["prompts", "text_encoder"],
            "pipeline_text": ["images"],
            "pipeline_autoencoder": ["images"],
            "pipeline_latents": ["images", "pipeline_autoencoder"],
            "pipeline_denoiser": ["pipeline_latents", "pipeline_text", "pipeline_autoencoder"],
            "pipeline": ["pipeline_denoiser", "pipeline_text", "pipeline_autoencoder"],
            "pipeline_clip": ["pipeline_text"],
            "states_manifest": ["states"],
            "pairs_manifest": ["pairs"],
            "distill": ["teacher"],
            "samples_manifest": ["sample"],
            "features": ["sample", "reference"],
            "clip": ["features"],
            "retrieval": ["sample", "captions"],
            "evaluate": ["features", "reference"],
            "inception_score": ["features", "reference"],
            "pictures": ["teacher", "distill"],
            "sheet": ["sample"],
            "export_onnx": ["distill"],
            "export_lora": ["distill"],
            "export_pipeline": ["distill", "text_encoder", "autoencoder", "prompts"],
        }.get(rule, [])
        if rule in ("sample", "latency"):
            sources = ["distill" if self.distilled(experiment) else "teacher"]
        if rule in ("sample", "pictures", "sheet") and self.section(experiment, "sample").prompts:
            sources += ["captions"]
        if rule in ("sample", "pictures", "latency") and self.section(experiment, "sample").prompts:
            sources += ["text_encoder"]
        if rule in ("pictures", "sheet", "features", "retrieval"):
            sources += self._part(experiment, "autoencoder")
        if rule == "retrieval" and self.section(experiment, "sample.prompts").kind == "captions":
            sources += ["images"]
        if rule == "teacher" and self.section(experiment, "teacher").kind == "train":
            sources = ["images"]
        if rule in ("prompts", "captions"):  # a rule that inherits from prompts asks for experiments without them, too
            sections = self.sections(experiment)
            sample = sections.sample.prompts if sections.sample is not None else None
            texts = sections.prompts if rule == "prompts" else sample
            sources = ["images"] if texts is not None and texts.kind == "captions" else []
        if rule == "reference" and self.section(experiment, "reference").moments is None:
            sources = ["images"]
        if rule == "distill":
            method = self.section(experiment, "distill").method
            reads, text = method.reads(), self.has(experiment, "text_encoder")
            encoded = text and self.sections(experiment).states is not None  # else the pairs hold the text states
            sources += ["pairs_manifest"] if reads & PAIRED or (text and not encoded) else []
            sources += ["states_manifest"] if encoded and "pairs_manifest" not in sources else []
            sources += ["images"] if "images" in reads else []
            decoders = {*method.decoders(), *self._monitor_decoder(experiment)}
            sources += [source for name, source in DECODERS.items() if name in decoders]
            sources += ["prompts"] if self.sections(experiment).monitor_clip is not None else []
        if rule == "export_pipeline":
            read = {name for name, _ in self.upstream(experiment, "distill")}
            sources += sorted(read & {"pairs_manifest", "states_manifest"})
        if rule == "features" and self.has_clip_score(experiment):
            sources += ["captions"]
        if rule == "latency":
            full = self.section(experiment, "evaluate.latency").decoder == "full"
            sources += self._part(experiment, "autoencoder" if full else "tiny_autoencoder")
        inputs = [(source, experiment) for source in sources]
        if rule == "distill" and (start := self.section(experiment, "distill").start):
            inputs.append(("teacher", start))
        if rule == "teacher" and (student := self.section(experiment, "teacher")).kind == "experiment":
            inputs.append(("distill", student.name))
        return inputs

    def _monitor_decoder(self, experiment: str) -> list[str]:
        """The decoder with which the monitor of a distillation decodes latents, if it does."""
        monitor = self.section(experiment, "distill").monitor
        return [monitor.decoder] if monitor is not None and self.has(experiment, "autoencoder") else []

    def training(self, experiment: str, rule: str) -> Training | None:
        """The section of the training that a rule runs: `distill`, a part of `pipeline`, or a trained `teacher`."""
        if rule in PARTS:
            return self._section_of(experiment, rule).training  # type: ignore[no-any-return]
        if rule == "teacher":
            return getattr(self.section(experiment, "teacher"), "training", None)
        return self.section(experiment, "distill") if rule == "distill" else None

    def versions(self, experiment: str, rule: str) -> list[int]:
        """The version of a rule and, above 1, that of the method that it trains with."""
        training = self.training(experiment, rule)
        method = training.method.version if training else 1
        return [RULES[rule].version, *([method] if method > 1 else [])]

    def _part(self, experiment: str, rule: str) -> list[str]:
        """The rule if the experiment has it, such as "autoencoder" for a teacher of latents."""
        return [rule] if self.has(experiment, rule) else []

    def has_clip_score(self, experiment: str) -> bool:
        """Whether the samples of an experiment get a CLIP score."""
        evaluate = self.sections(experiment).evaluate
        return evaluate is not None and evaluate.clip is not None

    def distilled(self, experiment: str) -> bool:
        """Whether the experiment's samples are drawn by a student."""
        return self.section(experiment, "sample").source == "generator"

    def _owner(self, experiment: str, rule: str) -> str:
        """The experiment whose folder has the artifact of a rule; for scores, whose spec has its name, always itself.

        A parent without a section that the rule needs owns nothing of that rule.
        """
        identity = self._identity(experiment, rule)
        parent = self.parents[experiment]
        if parent is None or not self.has(parent, rule):
            return experiment
        return self.owner(parent, rule) if identity == self._identity(parent, rule) else experiment

    def _compute_identity(self, experiment: str, rule: str) -> tuple[Json, list[tuple[str, str]], list[str]]:
        upstream = [(source, self.owner(name, source)) for source, name in self.upstream(experiment, rule)]
        spec = self._spec(experiment, rule)
        values = [self._section_of(experiment, rule).model_dump(exclude={"tiny_autoencoder"})]
        if rule == "features" and self.has_clip_score(experiment):
            values.append(self.section(experiment, "evaluate.clip").model_dump())
        if rule == "distill":
            read = self.sections(experiment).monitor_features, self.sections(experiment).monitor_clip
            values += [section.model_dump() for section in read if section is not None]
        return spec, upstream, [path for value in values for path in unpinned(value)]

    def _compute_lineage(self, experiment: str, rule: str) -> str:
        """A digest of the specs and versions of all rules upstream of a rule; "" if there are none.

        Snakemake removes the outputs of a job that fails, and takes what was made from them before for up to date. With
        this digest as a parameter of all rules, a run after a failed one makes everything that the failed one had to.
        """
        upstream = sorted({(source, self.owner(name, source)) for source, name in self.upstream(experiment, rule)})
        made = [
            [source, *self.versions(owner, source), self._spec(owner, source), self.lineage(owner, source)]
            for source, owner in upstream
        ]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16] if made else ""

    def path(self, experiment: str, rule: str, block: tuple[int, int] = (0, 0), number: int = 0) -> str:
        """Path of an artifact of a rule, by default the first one, relative to the folder of results."""
        name = RULES[rule].files[number].format(first=block[0], last=block[1])
        return f"{self.owner(experiment, rule)}/{name}"

    def num_items(self, experiment: str, rule: str, block: tuple[int, int]) -> int:
        """Images, or text states, of a block of a rule."""
        first, last = block
        return (last - first + 1) * int(self._section_of(experiment, rule).shard_size)

    def blocks(self, experiment: str, rule: str) -> list[tuple[int, int]]:
        """First and last shard of each block of `pairs`, `states` or `sample`; blocks do not cross repetitions."""
        section = self._section_of(experiment, rule)
        repetitions = getattr(section, "repetitions", 1)
        num = getattr(section, {"pairs": "num_pairs", "states": "num_states"}.get(rule, "num_samples"))
        shards, per_job = num // section.shard_size, section.shards_per_job
        return [
            (start * shards + first, start * shards + min(first + per_job, shards) - 1)
            for start in range(repetitions)
            for first in range(0, shards, per_job)
        ]

    def blocks_of_owner(self, owner: str, rule: str) -> frozenset[tuple[int, int]]:
        """The blocks of all experiments whose artifacts of this rule `owner` owns; these may have more than itself."""
        users = (name for name in self.parents if self.has(name, rule) and self.owner(name, rule) == owner)
        return frozenset(block for name in users for block in self.blocks(name, rule))
