"""Which experiment owns which artifact.

An experiment owns an artifact when the spec of its rule, or of any rule upstream, differs from the parent's;
otherwise the parent's artifact is its own too, and nothing is computed twice. Ownership is per rule: more pairs
means another manifest but the same shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dmd.config import ConfigError, Json
from dmd.distill_section import decoders
from dmd.layout import FILES
from dmd.sources import unpinned
from dmd.specs import SCORE_RULES, SECTIONS, Specs, without

BLOCK_RULES = ("pairs", "sample", "features")


class Experiments(Specs):
    """Look-ups over a configuration that `dmd.config.resolve` returned.

    Every method raises ConfigError for an unknown experiment or one without the section that a rule needs.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.parents: dict[str, str | None] = config["parents"]
        self.owner = cache(self._owner)

    def has(self, experiment: str, rule: str) -> bool:
        """Whether the experiment has every section that a rule, or a rule upstream, needs."""
        self.whole(experiment)
        try:
            self._identity(experiment, rule)
        except ConfigError:
            return False
        return True

    def upstream(self, experiment: str, rule: str) -> list[tuple[str, str]]:
        """(rule, experiment) of the artifacts that a rule reads, before ownership."""
        sources = {
            "pairs": ["teacher", *(["prompts", "text_encoder"] if "prompts" in self.whole(experiment) else [])],
            "pairs_manifest": ["pairs"],
            "distill": ["teacher", "pairs_manifest"],
            "samples_manifest": ["sample"],
            "features": ["sample", "reference"],
            "clip": ["features"],
            "evaluate": ["features", "reference"],
            "inception_score": ["features", "reference"],
            "pictures": ["teacher", "distill"],
            "sheet": ["sample"],
            "export": ["distill"],
            "lora": ["distill"],
            "pipeline": ["distill", "text_encoder", "autoencoder", "pairs_manifest", "prompts"],
        }.get(rule, [])
        if rule in ("sample", "latency"):
            sources = ["teacher" if self.section(experiment, "sample")["from"] == "teacher" else "distill"]
        if rule in ("sample", "latency", "pictures") and "prompts" in self.section(experiment, "sample"):
            sources += ["captions", "text_encoder"]
        if rule == "sheet" and "prompts" in self.section(experiment, "sample"):
            sources += ["captions"]
        if rule in ("pictures", "sheet", "features"):
            sources += self.parts(experiment, "autoencoder")
        if rule == "distill":
            sources += decoders(self.section(experiment, "distill"))
        if rule == "features" and "clip" in self.whole(experiment).get("evaluate", {}):
            sources += ["captions"]
        if rule == "latency":
            full = self.section(experiment, "evaluate.latency")["decoder"] == "full"
            sources += self.parts(experiment, "autoencoder" if full else "tiny_autoencoder")
        found = [(source, experiment) for source in sources]
        if rule == "distill" and (start := self.section(experiment, "distill")["start"]):
            found.append(("teacher", start))
        return found

    def parts(self, experiment: str, *rules: str) -> list[str]:
        """Those of `PARTS` among `rules` that the experiment's teacher has."""
        return [rule for rule in rules if self.has(experiment, rule)]

    def _owner(self, experiment: str, rule: str) -> str:
        """The experiment under whose name the artifact of a rule lies (scores: always its own).

        A parent that lacks a section the rule needs owns nothing of it.
        """
        identity = self._identity(experiment, rule)
        parent = self.parents[experiment]
        if parent is None or rule in SCORE_RULES or not self.has(parent, rule):
            return experiment
        return self.owner(parent, rule) if identity == self._identity(parent, rule) else experiment

    def _identity(self, experiment: str, rule: str) -> tuple[Json, list[tuple[str, str]], list[str]]:
        upstream = [(source, self.owner(name, source)) for source, name in self.upstream(experiment, rule)]
        spec = self.spec(experiment, rule)
        sections = [without(self.section(experiment, SECTIONS.get(rule, rule)), "tiny_autoencoder")]
        if rule == "features":
            sections.append(self.whole(experiment).get("evaluate", {}).get("clip", {}))
        return spec, upstream, [path for section in sections for path in unpinned(section)]

    def path(self, experiment: str, rule: str, block: tuple[int, int] = (0, 0)) -> str:
        """Where the (first) artifact of a rule lies, relative to the folder of results."""
        name = FILES[rule].format(first=block[0], last=block[1])
        return f"{self.owner(experiment, rule)}/{name}"

    def distilled(self, experiment: str) -> bool:
        """Whether the experiment's samples come from a generator."""
        return self.section(experiment, "sample")["from"] == "generator"

    def blocks(self, experiment: str, rule: str) -> list[tuple[int, int]]:
        """First and last shard of each block of `pairs` or `sample`; blocks never cross a repetition."""
        section = self.section(experiment, SECTIONS.get(rule, rule))
        repetitions = section.get("repetitions", 1)
        num = section.get("num_pairs") or section["num_samples"]
        shards, per_job = num // section["shard_size"], section["shards_per_job"]
        return [
            (start * shards + first, start * shards + min(first + per_job, shards) - 1)
            for start in range(repetitions)
            for first in range(0, shards, per_job)
        ]
