"""Experiments: what a configuration says once seeds, inheritance, checks and defaults are through, and who owns what.

`extends: other` inherits: mappings merge deeply, lists replace, and a mapping whose `kind` or `name` differs from its
parent's replaces it whole; one that names another `file` or `folder` does not inherit the `sha256` of its parent's.
`distill.seeds` of NAME makes NAME its first seed and adds an experiment NAME-seedN for each other one, which extends
seed N of what NAME extends where there is one, else NAME.

An experiment owns an artifact when the spec of its rule, or of any rule upstream, differs from the parent's; otherwise
the parent's artifact is its own too, and nothing is computed twice. Ownership is per rule: more pairs means another
manifest but the same shards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmd.config.experiment import Chart, Experiment, File, Input, Storage, Table
from dmd.config.messages import ConfigError, faults, raise_faults, unknown_experiment
from dmd.config.methods import Method
from dmd.config.reading import Json, placed, read_file, unfit_values, unpinned, with_digests
from dmd.config.rules import RULES, SCORES, Named, Rule
from dmd.config.section import NAMED, SOURCES, Section
from dmd.config.sections import DECODERS
from dmd.config.training import Training

SWITCHES = ("kind", "name")
SEED_STEP = 1_000_000  # between the first seeds of the samples of two seeds of a training
SCORED = ("reference", "sample", "evaluate")  # sections of an experiment that a table or chart can show
CHARTED = {"pairs": ("pairs",), "figure3": ("dataset",)}  # kind of a chart -> sections it needs besides
ROOT = "experiment"
METHOD: TypeAdapter[Any] = TypeAdapter(Method)


@dataclass(frozen=True)
class Configuration:
    """A checked configuration.

    Attributes:
        experiments: merged, defaults filled in.
        parents: what each extends.
        groups: all seeds of an experiment, itself first; of one without `seeds` itself alone.
        tables, charts: their experiments are those of all seeds where a row or series does not say `seeds: first`.
    """

    experiments: dict[str, Experiment]
    parents: dict[str, str | None]
    groups: dict[str, tuple[str, ...]]
    tables: dict[str, Table]
    charts: dict[str, Chart]
    inputs: dict[str, Input]
    storage: Storage | None


def load(path: Path = Path("config.yaml")) -> Configuration:
    """Reads a configuration file and what it includes; see `resolve`."""
    return resolve(read_file(path))


def resolve(written: Json) -> Configuration:
    """The configuration that a mapping as read from YAML stands for. Each `file` is then spelt in one way.

    Raises:
        ConfigError: all faults, a line each: unknown keys, wrong types or ranges, unknown or circular parents, numbers
            that contradict each other, names of nothing.
    """
    raise_faults(unfit_values(written))
    lines: list[str] = []
    written = placed(written)
    try:
        file = File.model_validate(written)
    except ValidationError as error:
        lines += faults(error, File)
        file = _usable_parts(written)
    sections, groups, odd = _with_seeds(file.experiments)
    lines += odd
    parents: dict[str, str | None] = {}
    merged: dict[str, Experiment] = {}
    known = {entry.file: entry.sha256 for entry in file.inputs.values() if entry.sha256 is not None}
    found: dict[str, list[str]] = {}  # faults by experiment, from its name on
    for name in sections:
        try:
            chain = _chain(name, sections)
        except ConfigError as error:
            lines.append(str(error))
            continue
        parents[name] = chain[1] if len(chain) > 1 else None
        try:
            merged[name] = _experiment(with_digests(_merged([sections[each] for each in chain]), known))
        except ConfigError as error:
            found[name] = str(error).split("\n")
    for name, own in found.items():
        named = (parents[name], *(first for first, group in groups.items() if name in group[1:]))
        inherited = [fault for other in named for fault in found.get(other or "", [])]  # named once, where they stand
        lines += [f"{name}{fault}" for fault in own if fault not in inherited]
    if not lines:
        tables, charts = _listed(file, groups)
        lines += _unknown_names(merged, tables, charts)
    raise_faults(lines)
    return Configuration(merged, parents, groups, tables, charts, file.inputs, file.storage)


def _usable_parts(written: Json) -> File:
    """What can be looked at of a file with faults, to find those of its experiments at the same time."""
    experiments = written.get("experiments") if isinstance(written, dict) else None
    usable = (
        {name: each for name, each in experiments.items() if isinstance(each, dict)}
        if isinstance(experiments, dict)
        else {}
    )
    return File.model_construct(experiments=usable)


def _experiment(merged: Json) -> Experiment:
    """A merged experiment; ConfigError has its faults without its name: `.pairs.num_pairs: ...`."""
    try:
        experiment = Experiment.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(line.removeprefix(ROOT) for line in faults(error, Experiment, ROOT))) from None
    raise_faults(f'.{place}: lacks the key "{key}", which has no default' for place, key in _unnamed(experiment))
    return experiment


def _unnamed(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Sections that lack a path, and its key."""
    if isinstance(value, Section):
        yield from ((place, key) for key in SOURCES if getattr(value, key, None) == NAMED)
        fields = type(value).model_fields
        items = [(f".{field.alias or name}", getattr(value, name)) for name, field in fields.items()]
    else:
        items = [(f"[{index}]", item) for index, item in enumerate(value)] if isinstance(value, tuple) else []
    for key, item in items:
        yield from _unnamed(item, f"{place}{key}".lstrip("."))


def _with_seeds(written: Mapping[str, Json]) -> tuple[dict[str, Json], dict[str, tuple[str, ...]], list[str]]:
    """Experiments as written and one for each further seed; all seeds by experiment; faults."""
    sections: dict[str, Json] = {}
    groups: dict[str, tuple[str, ...]] = {}
    lines: list[str] = []
    for name, section in written.items():
        sections[name] = section
        groups[name] = (name,)
        distill = section.get("distill")
        if not isinstance(distill, dict) or "seeds" not in distill:
            continue
        seeds, place = distill["seeds"], f"{name}.distill.seeds"
        own = {key: value for key, value in distill.items() if key != "seeds"}
        sections[name] = {**section, "distill": own}
        if not _are_seeds(seeds):
            lines.append(f"{place}: {seeds!r} is not a list of distinct whole numbers, such as [0, 1, 2]")
            continue
        if "seed" in own:
            lines.append(f"{place}: distill.seed is {own['seed']!r}, but the first of seeds says it")
        own["seed"] = seeds[0]
        others = {f"{name}-seed{seed}": seed for seed in seeds[1:]}
        groups[name] = (name, *others)
        for other, seed in others.items():
            if other in written:
                lines.append(f"{place}: seed {seed} is the experiment {other}, but there is another of that name")
                continue
            shared = seed in _further_seeds(section.get("extends"), written)
            parent = f"{section['extends']}-seed{seed}" if shared else name
            sections[other] = (sections[name] if shared else {}) | {"extends": parent}
            sections[other] = merge(sections[other], {"distill": {"seed": seed}})
            if _has_sample(name, written):
                sections[other] = merge(sections[other], {"sample": {"first_seed": seed * SEED_STEP}})
            groups[other] = (other,)
    return sections, groups, lines


def _further_seeds(name: Any, written: Mapping[str, Json]) -> list[int]:
    """Seeds of an experiment besides its first."""
    seeds = _part(written.get(name) if isinstance(name, str) else None, "distill").get("seeds")
    return seeds[1:] if isinstance(seeds, list) and _are_seeds(seeds) else []


def _are_seeds(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    return whole and bool(value) and len(set(value)) == len(value)


def _has_sample(name: Any, written: Mapping[str, Json]) -> bool:
    """Whether an experiment, or one that it extends, has a section sample."""
    seen: set[str] = set()
    while isinstance(name, str) and name in written and name not in seen:
        if "sample" in written[name]:
            return True
        seen.add(name)
        name = written[name].get("extends")
    return False


def _chain(name: str, written: Mapping[str, Json]) -> list[str]:
    """An experiment and all that it extends, itself first."""
    chain: list[str] = []
    ancestor: Any = name
    while ancestor is not None:
        if not isinstance(ancestor, str):
            raise ConfigError(f"{chain[-1]}.extends: {ancestor!r} is no name of an experiment")
        if ancestor in chain:
            circle = chain[chain.index(ancestor) :]
            first = circle.index(min(circle))
            names = [*circle[first:], *circle[:first], circle[first]]
            raise ConfigError(f"experiments: extends goes in a circle: {' -> '.join(names)}")
        if ancestor not in written:
            raise ConfigError(f"{chain[-1]}.extends: {unknown_experiment(ancestor, written)}")
        chain.append(ancestor)
        ancestor = written[ancestor].get("extends")
    return chain


def _merged(chain: Sequence[Json]) -> Json:
    """One experiment of all that it extends; `chain` begins with itself."""
    merged: Json = {}
    foreign: set[str] = set()  # roles whose optimiser was written for another method
    for section in reversed(chain):
        before = _method_name(merged)
        merged = merge(merged, {key: value for key, value in section.items() if key != "extends"})
        own = _optimisers(section)
        foreign = foreign | set(_optimisers(merged)) if before != _method_name(merged) and before else foreign
        foreign -= own.keys()
    merged = _without_null_moments(merged)
    return _without_optimisers(merged, foreign) if foreign else merged


def _method_name(experiment: Json) -> Any:
    return _part(experiment, "distill", "method").get("name")


def _optimisers(experiment: Json) -> Json:
    return _part(experiment, "distill", "optimisers")


def _part(value: Any, *keys: str) -> Json:
    """A mapping within mappings; an empty one where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _without_optimisers(experiment: Json, foreign: set[str]) -> Json:
    """Without inherited optimisers of roles that the experiment's own method does not train."""
    try:
        trained = METHOD.validate_python(experiment["distill"]["method"]).trained
    except ValidationError:
        return experiment
    distill = experiment["distill"]
    kept = {role: entry for role, entry in distill["optimisers"].items() if role in trained or role not in foreign}
    return {**experiment, "distill": {**distill, "optimisers": kept}}


def merge(parent: Any, child: Any) -> Any:
    """`child` over `parent`: mappings deeply, unless their `kind` or `name` differs; all else replaces."""
    if not isinstance(parent, dict) or not isinstance(child, dict):
        return child
    if any(key in parent and key in child and parent[key] != child[key] for key in SWITCHES):
        return child
    kept = _without_foreign_digest(parent, child)
    return {**kept, **{key: merge(kept.get(key), value) for key, value in child.items()}}


def _without_foreign_digest(parent: Json, child: Json) -> Json:
    """`parent` without its `sha256` where `child` names another file or folder: it is that of the parent's own."""
    if all(parent.get(key) == child[key] for key in SOURCES if key in child):
        return parent
    return {key: value for key, value in parent.items() if key != "sha256"}


def _without_null_moments(experiment: Json) -> Json:
    """`experiment` without `reference.moments: null`, with which a child says that it does not want its parent's."""
    reference = experiment.get("reference")
    if not isinstance(reference, dict) or reference.get("moments", ...) is not None:
        return experiment
    return experiment | {"reference": {key: value for key, value in reference.items() if key != "moments"}}


def _listed(file: File, groups: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Table], dict[str, Chart]]:
    """Tables and charts with all seeds of the experiments that they name."""

    def every(names: Sequence[str], seeds: str) -> tuple[str, ...]:
        return tuple(each for name in names for each in (groups.get(name, (name,)) if seeds == "all" else (name,)))

    tables, charts = {}, {}
    for name, table in file.tables.items():
        rows = [row.model_copy(update={"experiments": every(row.experiments, row.seeds)}) for row in table.rows]
        tables[name] = table.model_copy(update={"rows": tuple(rows)})
    for name, chart in file.charts.items():
        series = [
            each.model_copy(update={"points": tuple(every(point, each.seeds) for point in each.points)})
            for each in chart.series
        ]
        charts[name] = chart.model_copy(update={"series": tuple(series)})
    return tables, charts


def _unknown_names(
    experiments: Mapping[str, Experiment], tables: Mapping[str, Table], charts: Mapping[str, Chart]
) -> Iterator[str]:
    """Experiments that do not exist or lack what is asked of them, in `distill.start`, tables and charts."""
    uses: list[tuple[str, str, tuple[str, ...]]] = []  # place, experiment, sections it needs there
    for name, experiment in experiments.items():
        if experiment.distill and experiment.distill.start is not None:
            uses.append((f"{name}.distill.start", experiment.distill.start, ("teacher",)))
    for name, table in tables.items():
        uses += [(f"tables.{name}", each, SCORED) for row in table.rows for each in row.experiments]
    for name, chart in charts.items():
        needs = (*SCORED, *CHARTED.get(chart.kind, ()))
        points = [point for series in chart.series for point in series.points]
        uses += [(f"charts.{name}", each, needs) for point in points for each in point]
    for place, name, needs in uses:
        if name not in experiments:
            yield f"{place}: {unknown_experiment(name, experiments)}"
        elif lacking := [section for section in needs if getattr(experiments[name], section) is None]:
            yield f'{place}: experiment "{name}" cannot be used here: it has no section {", ".join(lacking)}'


class Experiments:
    """Look-ups over a configuration.

    Every method raises ConfigError for an unknown experiment or one without the section that a rule needs.

    Attributes:
        merged: all experiments by name.
        parents: what each extends.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.merged = configuration.experiments
        self.parents = configuration.parents
        self.owner = cache(self._owner)
        self.upstream = cache(self._upstream)
        self._identity = cache(self._shared_identity)
        self._spec = cache(self._shared_spec)

    def whole(self, experiment: str) -> Experiment:
        """A merged experiment."""
        return self._named(experiment).whole

    def section(self, experiment: str, place: str) -> Any:
        """One section of an experiment; "sample.prompts" is one within another."""
        return self._named(experiment).section(place)

    def _named(self, experiment: str) -> Named:
        if experiment not in self.merged:
            raise ConfigError(unknown_experiment(experiment, self.merged))
        return Named(experiment, self.merged[experiment])

    def spec(self, experiment: str, rule: str, block: tuple[int, int] | None = None) -> Json:
        """The numbers of one job, exactly the keys its stage takes; `block` for rules that make shards."""
        spec = copy.deepcopy(self._spec(experiment, rule))
        if RULES[rule].tars and block is not None:
            spec |= {"first": block[0], "last": block[1]}
        return spec

    def _shared_spec(self, experiment: str, rule: str) -> Json:
        named, row = self._named(experiment), RULES[rule]
        spec = row.spec(named, self._section_of(named, row))
        if row.computed:
            spec |= {"device": named.whole.device, "threads": named.whole.threads}
        return spec

    def _section_of(self, named: Named, rule: Rule) -> Any:
        assert rule.section is not None, "a rule of no experiment"
        return named.section(rule.section)

    def has(self, experiment: str, rule: str) -> bool:
        """Whether the experiment has every section that a rule, or a rule upstream, needs."""
        self.whole(experiment)
        try:
            self._identity(experiment, rule)
        except ConfigError:
            return False
        return True

    def _upstream(self, experiment: str, rule: str) -> list[tuple[str, str]]:
        """(rule, experiment) of the artifacts that a rule reads, before ownership."""
        sources = {
            "pairs": ["teacher", *(["prompts", "text_encoder"] if self.whole(experiment).prompts else [])],
            "states": ["prompts", "text_encoder"],
            "states_manifest": ["states"],
            "pairs_manifest": ["pairs"],
            "distill": ["teacher"],
            "samples_manifest": ["sample"],
            "features": ["sample", "reference"],
            "clip": ["features"],
            "evaluate": ["features", "reference"],
            "inception_score": ["features", "reference"],
            "pictures": ["teacher", "distill"],
            "sheet": ["sample"],
            "export": ["distill"],
            "lora": ["distill"],
            "pipeline": ["distill", "text_encoder", "autoencoder", "prompts"],
        }.get(rule, [])
        if rule in ("sample", "latency"):
            sources = ["distill" if self.distilled(experiment) else "teacher"]
        if rule in ("sample", "latency", "pictures") and self.section(experiment, "sample").prompts:
            sources += ["captions", "text_encoder"]
        if rule == "sheet" and self.section(experiment, "sample").prompts:
            sources += ["captions"]
        if rule in ("pictures", "sheet", "features"):
            sources += self.parts(experiment, "autoencoder")
        if rule == "teacher" and self.section(experiment, "teacher").kind == "train":
            sources = ["images"]
        if rule == "reference" and self.section(experiment, "reference").moments is None:
            sources = ["images"]
        if rule == "distill":
            method = self.section(experiment, "distill").method
            reads, text = method.reads(), self.has(experiment, "text_encoder")
            encoded = text and self.whole(experiment).states is not None  # else text states are those of the pairs
            sources += ["pairs_manifest"] if reads & {"pairs", "trajectories"} or (text and not encoded) else []
            sources += ["states_manifest"] if encoded and "pairs_manifest" not in sources else []
            sources += ["images"] if "images" in reads else []
            sources += [each for name, each in DECODERS.items() if name in method.decoders()]
        if rule == "pipeline":
            read = {name for name, _ in self.upstream(experiment, "distill")}
            sources += sorted(read & {"pairs_manifest", "states_manifest"})
        if rule == "features" and self.judged(experiment):
            sources += ["captions"]
        if rule == "latency":
            full = self.section(experiment, "evaluate.latency").decoder == "full"
            sources += self.parts(experiment, "autoencoder" if full else "tiny_autoencoder")
        inputs = [(source, experiment) for source in sources]
        if rule == "distill" and (start := self.section(experiment, "distill").start):
            inputs.append(("teacher", start))
        return inputs

    def training(self, experiment: str, rule: str) -> Training | None:
        """The section of the training that a rule runs: `distill`, or `teacher` where it is trained here."""
        if rule == "teacher":
            return getattr(self.section(experiment, "teacher"), "training", None)
        return self.section(experiment, "distill") if rule == "distill" else None

    def parts(self, experiment: str, *rules: str) -> list[str]:
        """Those among `rules`, all of a teacher of latents, that the experiment's teacher has."""
        return [rule for rule in rules if self.has(experiment, rule)]

    def judged(self, experiment: str) -> bool:
        """Whether CLIP sees the samples of an experiment."""
        evaluate = self.whole(experiment).evaluate
        return evaluate is not None and evaluate.clip is not None

    def distilled(self, experiment: str) -> bool:
        """Whether the experiment's samples come from a generator."""
        return self.section(experiment, "sample").source == "generator"

    def _owner(self, experiment: str, rule: str) -> str:
        """The experiment under whose name the artifact of a rule lies (scores: always its own).

        A parent that lacks a section the rule needs owns nothing of it.
        """
        identity = self._identity(experiment, rule)
        parent = self.parents[experiment]
        if parent is None or rule in SCORES or not self.has(parent, rule):
            return experiment
        return self.owner(parent, rule) if identity == self._identity(parent, rule) else experiment

    def _shared_identity(self, experiment: str, rule: str) -> tuple[Json, list[tuple[str, str]], list[str]]:
        upstream = [(source, self.owner(name, source)) for source, name in self.upstream(experiment, rule)]
        spec = self._spec(experiment, rule)
        named = self._named(experiment)
        section = self._section_of(named, RULES[rule])
        values = [section.model_dump(exclude={"tiny_autoencoder"})]
        if rule == "features" and self.judged(experiment):
            values.append(self.section(experiment, "evaluate.clip").model_dump())
        return spec, upstream, [path for value in values for path in unpinned(value)]

    def path(self, experiment: str, rule: str, block: tuple[int, int] = (0, 0), number: int = 0) -> str:
        """Where an artifact of a rule lies, its first by default, relative to the folder of results."""
        name = RULES[rule].files[number].format(first=block[0], last=block[1])
        return f"{self.owner(experiment, rule)}/{name}"

    def blocks(self, experiment: str, rule: str) -> list[tuple[int, int]]:
        """First and last shard of each block of `pairs`, `states` or `sample`; blocks never cross a repetition."""
        section = self._section_of(self._named(experiment), RULES[rule])
        repetitions = getattr(section, "repetitions", 1)
        num = getattr(section, {"pairs": "num_pairs", "states": "num_states"}.get(rule, "num_samples"))
        shards, per_job = num // section.shard_size, section.shards_per_job
        return [
            (start * shards + first, start * shards + min(first + per_job, shards) - 1)
            for start in range(repetitions)
            for first in range(0, shards, per_job)
        ]
