"""Experiments: what a configuration says once inheritance, defaults and checks are through.

`extends: other` inherits: mappings merge deeply, lists replace, and a mapping whose `kind` (or, for a solver,
`name`) differs from its parent's replaces it whole. The schema then checks the merged experiment and fills in its
defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Json = dict[str, Any]
SWITCHES = ("kind", "name")


class ConfigError(ValueError):
    """The configuration cannot be used; the message has one line per fault and names key and value."""


def load(path: Path, schema: Path) -> Json:
    """Reads and resolves a configuration file; see `resolve`."""
    return resolve(read_yaml(path), read_yaml(schema))


def read_yaml(path: Path) -> Json:
    """One YAML mapping; ConfigError if the file is missing, broken or holds something else."""
    try:
        value = yaml.load(Path(path).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def resolve(config: Json, schema: Json) -> Json:
    """Merged and checked configuration: `experiments` (defaults filled), `parents`, `tables`, `charts`.

    Args:
        config: as written.
        schema: JSON schema of the whole file; `$defs/experiment` is that of one merged experiment.

    Raises:
        ConfigError: unknown key, wrong type or range, unknown or circular parent, contradicting numbers.
    """
    config = filled(schema, config, schema)
    _raise(_faults(schema, config, ""))
    written = config["experiments"]
    parents = {name: section.get("extends") for name, section in written.items()}
    merged = {name: _merged_chain(name, written) for name in written}
    part = {"$ref": "#/$defs/experiment", "$defs": schema["$defs"]}
    merged = {name: filled(part, experiment, schema) for name, experiment in merged.items()}
    for name, experiment in merged.items():
        _raise(_faults(part, experiment, name))
        _raise(f"{name}.{fault}" for fault in contradictions(experiment))
    _raise(_unknown_names(merged, config))
    return {**config, "experiments": merged, "parents": parents}


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` where a known name is close, else nothing."""
    return "".join(f' (did you mean "{close}"?)' for close in difflib.get_close_matches(name, list(known), n=1))


def unknown_experiment(name: str, known: Iterable[str]) -> str:
    """The message for a name that is no experiment."""
    return f'unknown experiment "{name}"{suggestion(name, known)}; experiments are: {", ".join(sorted(known))}'


def merge(parent: Any, child: Any) -> Any:
    """`child` over `parent`: mappings deeply, unless their `kind` or `name` differs; all else replaces."""
    if not isinstance(parent, dict) or not isinstance(child, dict):
        return child
    if any(key in parent and key in child and parent[key] != child[key] for key in SWITCHES):
        return child
    return {**parent, **{key: merge(parent.get(key), value) for key, value in child.items()}}


def filled(part: Json, value: Any, schema: Json) -> Any:
    """`value` with the defaults of `part` of the schema; where it wants a number, 80 becomes 80.0."""
    part = _expanded(part, schema)
    if part.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, list) and "items" in part:
        return [filled(part["items"], item, schema) for item in value]
    if not isinstance(value, dict):
        return value
    for case in part.get("allOf", []):
        if jsonschema.Draft202012Validator(case["if"]).is_valid(value):
            return filled(case["then"], value, schema)
    properties = {key: _expanded(entry, schema) for key, entry in part.get("properties", {}).items()}
    whole = {key: entry["default"] for key, entry in properties.items() if "default" in entry} | value
    other = part.get("additionalProperties") or {}
    return {key: filled(properties.get(key, other), item, schema) for key, item in whole.items()}


def _expanded(part: Json, schema: Json) -> Json:
    """A part of the schema with its `$ref` followed; keys beside the reference win."""
    while "$ref" in part:
        target = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
        part = target | {key: value for key, value in part.items() if key != "$ref"}
    return part


def contradictions(experiment: Json) -> Iterator[str]:
    """Faults between keys that each are fine alone, as `section.key: message`."""
    pairs, sample = experiment.get("pairs"), experiment.get("sample")
    for name, section, key in (("pairs", pairs, "num_pairs"), ("sample", sample, "num_samples")):
        if section and section[key] % section["shard_size"]:
            yield f"{name}.{key}: {section[key]} is not a multiple of shard_size {section['shard_size']}"
    if sample and (sample["from"] == "generator") != (sample["solver"]["name"] == "one-step"):
        wants = "one-step" if sample["from"] == "generator" else "heun or euler"
        yield f"sample.solver.name: from {sample['from']} wants {wants}, not {sample['solver']['name']}"
    if pairs and sample:
        last_pair = pairs["first_seed"] + pairs["num_pairs"] - 1
        last_sample = sample["first_seed"] + sample["num_samples"] * sample["repetitions"] - 1
        if pairs["first_seed"] <= last_sample and sample["first_seed"] <= last_pair:
            yield (
                f"sample.first_seed: seeds {sample['first_seed']}..{last_sample} of the samples overlap "
                f"{pairs['first_seed']}..{last_pair} of the pairs, "
                "but nothing may be scored on noise it was regressed on"
            )
    dataset = experiment.get("dataset", {})
    if dataset.get("kind") == "gaussian-mixture":
        lengths = {key: len(dataset[key]) for key in ("means", "stds", "weights")}
        if len(set(lengths.values())) > 1:
            yield f"dataset: means, stds and weights differ in length: {lengths}"
    if experiment.get("teacher", {}).get("kind") == "gaussian-mixture" != dataset.get("kind"):
        yield f"teacher.kind: gaussian-mixture needs a dataset of that kind, not {dataset.get('kind')}"
    sigma = experiment.get("distill", {}).get("sigma")
    if pairs and sigma is not None and sigma != pairs["solver"]["sigma_max"]:
        yield (
            f"distill.sigma: {sigma} differs from pairs.solver.sigma_max {pairs['solver']['sigma_max']}, "
            "but pairs teach the generator only at its own noise scale"
        )
    levels = experiment.get("distill", {}).get("levels")
    if levels and not levels["min_index"] <= levels["max_index"] < levels["count"]:
        ends = f"{levels['min_index']}..{levels['max_index']}"
        yield f"distill.levels: indices {ends} are no range within 0..{levels['count'] - 1}"


def _merged_chain(name: str, written: Mapping[str, Json]) -> Json:
    chain: list[str] = []
    ancestor: str | None = name
    while ancestor is not None:
        if ancestor in chain:
            raise ConfigError(f"experiments: extends goes in a circle: {' -> '.join([*chain, ancestor])}")
        if ancestor not in written:
            raise ConfigError(f"{chain[-1]}.extends: {unknown_experiment(ancestor, written)}")
        chain.append(ancestor)
        ancestor = written[ancestor].get("extends")
    merged: Json = {}
    for each in reversed(chain):
        merged = merge(merged, {key: value for key, value in written[each].items() if key != "extends"})
    return merged


def _unknown_names(experiments: Mapping[str, Json], config: Json) -> Iterator[str]:
    """Names of experiments that do not exist, in `distill.start`, tables and charts."""
    uses = [(f"{name}.distill.start", e.get("distill", {}).get("start")) for name, e in experiments.items()]
    for table, entry in config["tables"].items():
        uses += [(f"tables.{table}", name) for row in entry["rows"] for name in row["experiments"]]
    for chart, entry in config["charts"].items():
        points = [point for series in entry["series"] for point in series["points"]]
        uses += [(f"charts.{chart}", name) for point in points for name in point]
    for place, name in uses:
        if name is not None and name not in experiments:
            yield f"{place}: {unknown_experiment(name, experiments)}"


def _faults(schema: Json, value: Json, place: str) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error.absolute_path)
        yield from _described((place + path).lstrip(".") or "config", error)


def _described(place: str, error: jsonschema.ValidationError) -> Iterator[str]:
    value: Any = error.instance
    if error.validator == "additionalProperties" and isinstance(error.schema, Mapping):
        known = error.schema["properties"]
        for key in set(value) - set(known):
            close = suggestion(str(key), known)
            yield f'{place}: unknown key "{key}"{close}; keys are: {", ".join(known)}'
    elif isinstance(value, str) and (number := _number(value)):
        yield f"{place}: '{value}' is a string to YAML, not a number; write {number}"
    else:
        yield f"{place}: {error.message}"


def _number(text: str) -> str | None:
    """`text` spelt as YAML reads a number (a dot, a signed exponent), None if it is no number."""
    try:
        return yaml.safe_dump(int(text) if text.strip("+-").isdigit() else float(text)).split("\n")[0]
    except ValueError:
        return None


def _raise(faults: Iterable[str]) -> None:
    if lines := sorted(set(faults)):
        raise ConfigError("\n".join(lines))
