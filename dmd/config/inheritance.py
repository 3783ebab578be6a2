"""Experiments with seeds, inheritance and defaults resolved, and checked.

`extends: other` inherits: mappings merge deeply and lists are replaced. A mapping whose `kind` or `name` differs from
the parent's replaces it; one with another `file` or `folder` does not inherit the parent's `sha256`.
With `distill.seeds`, NAME has the first seed, and an experiment NAME-seedN is added for each further seed N. It extends
PARENT-seedN if NAME extends PARENT and PARENT has seed N, else NAME. If its teacher is the student of an experiment
with seed N, it is that of TEACHER-seedN.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from dmd.config.experiment import Chart, Experiment, File, Input, Storage, Table
from dmd.config.messages import TAGS, ConfigError, faults, raise_faults, unknown_experiment
from dmd.config.method_base import STUDENT
from dmd.config.methods import Method
from dmd.config.printing import piece
from dmd.config.reading import Json, normalise_paths, read_file, unfit_values, with_digests
from dmd.config.section_base import SOURCES, UNSET_PATH, nested_sections
from dmd.config.sections import ExperimentTeacher

MAX_SEEDS = 100
SEED_STEP = 1_000_000  # samples of training seed N begin at noise seed N * SEED_STEP
SCORED = ("reference", "sample", "evaluate")  # sections that a table or chart needs of an experiment
CHARTED = {"pairs": ("pairs",), "figure3": ("dataset",)}  # kind of a chart -> further sections that it needs
ROOT = "experiment"
METHOD: TypeAdapter[Any] = TypeAdapter(Method)


@dataclass(frozen=True)
class Configuration:
    """A checked configuration.

    Attributes:
        experiments: by name, after inheritance and with defaults.
        parents: the experiment that each one extends.
        tables, charts: by name; names of experiments include their seeds, as many as `seeds` says.
    """

    experiments: dict[str, Experiment]
    parents: dict[str, str | None]
    tables: dict[str, Table]
    charts: dict[str, Chart]
    inputs: dict[str, Input]
    storage: Storage | None


def load(path: Path = Path("config.yaml")) -> Configuration:
    """Reads a configuration file and its included files; see `resolve`."""
    return resolve(read_file(path))


def resolve(written: Json) -> Configuration:
    """Checks and resolves a mapping from YAML; see `normalise_paths` for the paths.

    Raises:
        ConfigError: all faults, a line each: unknown keys, wrong types or ranges, unknown or circular parents,
            contradictions, unknown names.
    """
    raise_faults(unfit_values(written))
    lines: list[str] = []
    written = normalise_paths(written)
    try:
        file = File.model_validate(written)
    except ValidationError as error:
        lines += faults(error, File)
        file = _usable_parts(written)
    sections, groups, seed_faults = _with_seeds(file.experiments)
    lines += seed_faults
    parents: dict[str, str | None] = {}
    merged: dict[str, Experiment] = {}
    digests = {entry.path: entry.sha256 for entry in file.inputs.values() if entry.sha256 is not None}
    by_experiment: dict[str, list[str]] = {}  # faults, without the name of the experiment
    for name in sections:
        try:
            chain = _chain(name, sections)
        except ConfigError as error:
            lines.append(str(error))
            continue
        parents[name] = chain[1] if len(chain) > 1 else None
        try:
            merged[name] = _experiment(with_digests(_merge_chain([sections[ancestor] for ancestor in chain]), digests))
        except ConfigError as error:
            by_experiment[name] = str(error).split("\n")
    for name, own in by_experiment.items():
        sources = (parents[name], *(first for first, group in groups.items() if name in group[1:]))
        inherited = [fault for other in sources for fault in by_experiment.get(other or "", [])]  # reported there
        lines += [f"{name}{fault}" for fault in own if fault not in inherited]
    if not lines:
        tables, charts = _with_all_seeds(file, groups)
        lines += [*_unknown_names(merged, tables, charts)] or _unfit_teachers(merged) or _unfit_guidance(merged)
    raise_faults(lines)
    return Configuration(merged, parents, tables, charts, file.inputs, file.storage)


def _usable_parts(written: Json) -> File:
    """The experiments, in a file with faults, that can still be checked."""
    experiments = written.get("experiments") if isinstance(written, dict) else None
    usable = (
        {name: section for name, section in experiments.items() if isinstance(section, dict)}
        if isinstance(experiments, dict)
        else {}
    )
    return File.model_construct(experiments=usable)


def _experiment(merged: Json) -> Experiment:
    """Validates a merged experiment; faults in ConfigError begin without its name: `.pairs.num_pairs: ...`."""
    try:
        experiment = Experiment.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(line.removeprefix(ROOT) for line in faults(error, Experiment, ROOT))) from None
    raise_faults(
        f'{place}: lacks the key "{key}", which has no default'
        for place, section in nested_sections(experiment, "")
        for key in SOURCES
        if getattr(section, key, None) == UNSET_PATH
    )
    return experiment


def _with_seeds(written: Mapping[str, Json]) -> tuple[dict[str, Json], dict[str, tuple[str, ...]], list[str]]:
    """Experiments as written plus one per further seed; by experiment those of all its seeds, itself first; faults."""
    sections: dict[str, Json] = {}
    groups: dict[str, tuple[str, ...]] = {}
    lines: list[str] = []
    for name, section in written.items():
        sections[name] = section
        groups[name] = (name,)
        distill = section.get("distill")
        if not isinstance(distill, dict) or "seeds" not in distill:
            continue
        seeds, seeds_key = distill["seeds"], f"{name}.distill.seeds"
        own = {key: value for key, value in distill.items() if key != "seeds"}
        sections[name] = {**section, "distill": own}
        if not _are_seeds(seeds):
            wanted = f"a list of at most {MAX_SEEDS} distinct whole numbers, such as [0, 1, 2]"
            lines.append(f"{seeds_key}: {piece(repr(seeds))} is not {wanted}")
            continue
        if "seed" in own:
            lines.append(f"{seeds_key}: distill.seed is {own['seed']!r}, but the first of seeds is used: remove one")
        own["seed"] = seeds[0]
        others = {f"{name}-seed{seed}": seed for seed in seeds[1:]}
        groups[name] = (name, *others)
        for other, seed in others.items():
            if other in written:
                lines.append(
                    f"{seeds_key}: seed {seed} makes the experiment {other}, but there is another of that name"
                )
                continue
            shared = seed in _further_seeds(section.get("extends"), written)
            parent = f"{section['extends']}-seed{seed}" if shared else name
            sections[other] = (sections[name] if shared else {}) | {"extends": parent}
            sections[other] = merge(sections[other], {"distill": {"seed": seed}})
            teacher = _part(_inherited(name, "teacher", written))
            if teacher.get("kind") == "experiment" and seed in _further_seeds(teacher.get("name"), written):
                sections[other]["teacher"] = {**teacher, "name": f"{teacher['name']}-seed{seed}"}
            if _inherited(name, "sample", written) is not None:
                sections[other] = merge(sections[other], {"sample": {"first_seed": seed * SEED_STEP}})
            groups[other] = (other,)
    return sections, groups, lines


def _further_seeds(name: Any, written: Mapping[str, Json]) -> list[int]:
    """Seeds of an experiment after its first."""
    seeds = _part(written.get(name) if isinstance(name, str) else None, "distill").get("seeds")
    return seeds[1:] if isinstance(seeds, list) and _are_seeds(seeds) else []


def _are_seeds(value: Any) -> bool:
    valid = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    return valid and 0 < len(value) <= MAX_SEEDS and len(set(value)) == len(value)


def _inherited(name: Any, key: str, written: Mapping[str, Json]) -> Any:
    """A section of an experiment, merged with those of its ancestors; None if there is none."""
    sections, seen = [], set[str]()
    while isinstance(name, str) and name in written and name not in seen:
        sections += [written[name][key]] if key in written[name] else []
        seen.add(name)
        name = written[name].get("extends")
    return functools.reduce(merge, reversed(sections), None)


def _chain(name: str, written: Mapping[str, Json]) -> list[str]:
    """An experiment and its ancestors, itself first."""
    chain: list[str] = []
    ancestor: Any = name
    while ancestor is not None:
        if not isinstance(ancestor, str):
            raise ConfigError(f"{chain[-1]}.extends: {ancestor!r} is not the name of an experiment")
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


def _merge_chain(chain: Sequence[Json]) -> Json:
    """An experiment merged with its ancestors; `chain` begins with the experiment."""
    merged: Json = {}
    foreign: set[str] = set()  # roles whose optimiser belongs to another method
    for section in reversed(chain):
        before = _method_name(merged)
        merged = merge(merged, {key: value for key, value in section.items() if key != "extends"})
        own = _optimisers(section)
        foreign = foreign | set(_optimisers(merged)) if before != _method_name(merged) and before else foreign
        foreign -= own.keys()
    merged = _without_null_moments(merged)
    return _without_optimisers(merged, foreign) if foreign & _optimisers(merged).keys() else merged


def _method_name(experiment: Json) -> Any:
    return _part(experiment, "distill", "method").get("name")


def _optimisers(experiment: Json) -> Json:
    return _part(experiment, "distill", "optimisers")


def _part(value: Any, *keys: str) -> Json:
    """A mapping, or the one at `keys` within it; an empty one if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _without_optimisers(experiment: Json, foreign: set[str]) -> Json:
    """`experiment` without inherited optimisers of roles that its method does not train."""
    try:
        trained = METHOD.validate_python(experiment["distill"]["method"]).trained
    except ValidationError:
        return experiment
    distill = experiment["distill"]
    own = {role: entry for role, entry in distill["optimisers"].items() if role in trained or role not in foreign}
    return {**experiment, "distill": {**distill, "optimisers": own}}


def merge(parent: Any, child: Any) -> Any:
    """`child` over `parent`: mappings merge deeply unless their `kind` or `name` differs; all else is replaced."""
    if not isinstance(parent, dict) or not isinstance(child, dict):
        return child
    if any(key in parent and key in child and parent[key] != child[key] for key in TAGS):
        return child
    inherited = _without_foreign_digest(parent, child)
    return {**inherited, **{key: merge(inherited.get(key), value) for key, value in child.items()}}


def _without_foreign_digest(parent: Json, child: Json) -> Json:
    """`parent` without its `sha256` if `child` has another file or folder."""
    if all(parent.get(key) == child[key] for key in SOURCES if key in child):
        return parent
    return {key: value for key, value in parent.items() if key != "sha256"}


def _without_null_moments(experiment: Json) -> Json:
    """`experiment` without `reference.moments: null`, which only says that a child drops its parent's moments."""
    reference = experiment.get("reference")
    if not isinstance(reference, dict) or reference.get("moments", ...) is not None:
        return experiment
    return experiment | {"reference": {key: value for key, value in reference.items() if key != "moments"}}


def _with_all_seeds(file: File, groups: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Table], dict[str, Chart]]:
    """Tables and charts with the experiments of all seeds that they show."""

    def expand(names: Sequence[str], seeds: int | Literal["all"]) -> tuple[str, ...]:
        stop = None if seeds == "all" else seeds
        return tuple(seed for name in names for seed in groups.get(name, (name,))[:stop])

    tables, charts = {}, {}
    for name, table in file.tables.items():
        rows = [
            row.model_copy(update={"experiments": expand(row.experiments, row.seeds or table.seeds)})
            for row in table.rows
        ]
        tables[name] = table.model_copy(update={"rows": tuple(rows)})
    for name, chart in file.charts.items():
        series = [
            line.model_copy(update={"points": tuple(expand(point, chart.seeds) for point in line.points)})
            for line in chart.series
        ]
        charts[name] = chart.model_copy(update={"series": tuple(series)})
    return tables, charts


def _unknown_names(
    experiments: Mapping[str, Experiment], tables: Mapping[str, Table], charts: Mapping[str, Chart]
) -> Iterator[str]:
    """Experiments in `distill.start`, `teacher`, tables and charts that do not exist, or lack a section."""
    uses: list[tuple[str, str, tuple[str, ...]]] = []  # key, experiment, sections that it must have
    for name, experiment in experiments.items():
        if experiment.distill and experiment.distill.start is not None:
            uses.append((f"{name}.distill.start", experiment.distill.start, ("teacher",)))
        if isinstance(experiment.teacher, ExperimentTeacher):
            uses.append((f"{name}.teacher.name", experiment.teacher.name, ("teacher", "distill")))
    for name, table in tables.items():
        uses += [(f"tables.{name}", experiment, SCORED) for row in table.rows for experiment in row.experiments]
    for name, chart in charts.items():
        needs = (*SCORED, *CHARTED.get(chart.kind, ()))
        points = [point for series in chart.series for point in series.points]
        uses += [(f"charts.{name}", experiment, needs) for point in points for experiment in point]
    for key, name, needs in uses:
        if name not in experiments:
            yield f"{key}: {unknown_experiment(name, experiments)}"
        elif lacking := [section for section in needs if getattr(experiments[name], section) is None]:
            yield f'{key}: experiment "{name}" cannot be used here: it has no section {", ".join(lacking)}'


def _unfit_teachers(experiments: Mapping[str, Experiment]) -> list[str]:
    """Teachers that are students of experiments, but of themselves, or that cannot teach."""
    lines = []
    for name, experiment in experiments.items():
        if isinstance(teacher := experiment.teacher, ExperimentTeacher):
            fault = _circle(name, experiments) or _unfit_student(teacher, experiments[teacher.name])
            lines += [f"{name}.teacher.{fault}"] if fault else []
    return lines


def _unfit_guidance(experiments: Mapping[str, Experiment]) -> list[str]:
    """Guidance of samples that students do not take as an input, and methods that would lose a teacher's input."""
    lines = []
    for name, experiment in experiments.items():
        sample, distill, teacher = experiment.sample, experiment.distill, experiment.teacher
        if distill is not None and isinstance(teacher, ExperimentTeacher) and not distill.method.keeps_guidance:
            if _guidance_range(experiments[teacher.name], experiments) is not None:
                lines.append(
                    f"{name}.distill.method.name: the teacher, the student of {teacher.name}, takes the guidance as an "
                    f"input, which a student of method {distill.method.name} would lose: only method progressive keeps "
                    "it"
                )
                continue
        if sample is None or sample.source == "teacher":
            continue
        guidances = _guidance_range(experiment, experiments) if distill is not None else None
        key = f"{name}.sample.guidance: {sample.guidance}"
        if guidances is None and sample.guidance != 1:
            lines.append(f"{key}, but a student is sampled without guidance, unless its network takes it as an input")
        elif guidances is not None and not guidances[0] <= sample.guidance <= guidances[1]:
            low, high = guidances
            lines.append(f"{key} is outside {low:g} .. {high:g}, the guidance that the student takes as an input")
    return lines


def _guidance_range(experiment: Experiment, experiments: Mapping[str, Experiment]) -> tuple[float, float] | None:
    """Lowest and highest guidance that the student of an experiment takes as an input; None if it takes none."""
    assert experiment.distill is not None
    method, teacher = experiment.distill.method, experiment.teacher
    if method.roles()[STUDENT].guidance_input:
        return method.guidance_range()
    if method.keeps_guidance and isinstance(teacher, ExperimentTeacher):
        return _guidance_range(experiments[teacher.name], experiments)
    return None


def _circle(name: str, experiments: Mapping[str, Experiment]) -> str:
    """A fault if the teacher of an experiment is made, over others, from itself; else an empty string."""

    def back(names: list[str]) -> list[str]:
        """`names` and further ones up to `name`, where each teacher needs the next one's; [] if none leads there."""
        teacher = experiments[names[-1]].teacher
        if not isinstance(teacher, ExperimentTeacher):
            return []
        distill = experiments[teacher.name].distill
        start = distill.start if distill else None
        for other in (teacher.name, *([start] if start else [])):
            if other == name:
                return [*names, other]
            if other not in names and (found := back([*names, other])):
                return found
        return []

    circle = back([name])
    return f"name: teachers are made from each other in a circle: {' -> '.join(circle)}" if circle else ""


def _unfit_student(teacher: ExperimentTeacher, source: Experiment) -> str:
    """A fault if the student of an experiment cannot be this teacher; else an empty string."""
    distill, its = source.distill, f"name: the student of {teacher.name}"
    assert distill is not None
    if not distill.method.denoises:
        return (
            f"{its} (method {distill.method.name}) is no denoiser at all noise levels, as a teacher must be: "
            "only methods rectified-flow with objective reflow and meng train such students"
        )
    if source.makes_latents:
        return f"{its} makes latents, which kind experiment does not support"
    if teacher.weights == "best" and not (distill.monitor and distill.monitor.best):
        return f"weights: best, but distill.monitor of {teacher.name} keeps no such weights"
    return ""
