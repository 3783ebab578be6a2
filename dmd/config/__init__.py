"""Experiments: what a configuration says once inheritance, defaults and checks are through.

`extends: other` inherits: mappings merge deeply, lists replace, and a mapping whose `kind` (or, for a solver,
`name`) differs from its parent's replaces it whole; one that names another `file` or `folder` does not inherit the
`sha256` of its parent's. The schema then checks the merged experiment and fills in its
defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from dmd.checks import Json, contradictions, suggestion, unfit_inputs, unfit_storage, unknown_experiment, unknown_names
from dmd.sources import SOURCES, placed, unfit_values, with_digests

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
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def resolve(config: Json, schema: Json) -> Json:
    """Merged and checked configuration: `experiments` (defaults filled), `parents`, `tables`, `charts`, `inputs`,
    `storage`.

    Each `file` is spelt in one way. A mapping of an experiment that names one gets its `sha256`: its own, else that of
    the input of that file, else None.

    Args:
        config: as written.
        schema: JSON schema of the whole file; `$defs/experiment` is that of one merged experiment.

    Raises:
        ConfigError: unknown key, wrong type or range, unknown or circular parent, contradicting numbers.
    """
    _raise(unfit_values(config))
    config = filled(schema, placed(config), schema)
    _raise(_faults(schema, config, ""))
    written = config["experiments"]
    parents = {name: section.get("extends") for name, section in written.items()}
    merged = {name: _without_null_moments(_merged_chain(name, written)) for name in written}
    part = {"$ref": "#/$defs/experiment", "$defs": schema["$defs"]}
    merged = {name: filled(part, experiment, schema) for name, experiment in merged.items()}
    for name, experiment in merged.items():
        _raise(_faults(part, experiment, name))
        _raise(f"{name}.{fault}" for fault in contradictions(experiment))
    _raise(unknown_names(merged, config))
    _raise(unfit_inputs(config["inputs"]))
    _raise(unfit_storage(config["storage"]))
    digests = {entry["file"]: entry["sha256"] for entry in config["inputs"].values()}
    merged = {name: with_digests(experiment, digests) for name, experiment in merged.items()}
    return {**config, "experiments": merged, "parents": parents}


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


def filled(part: Json, value: Any, schema: Json) -> Any:
    """`value` with the defaults of `part` of the schema; 80 becomes 80.0 and 80.0 becomes 80 where it wants that."""
    part = _expanded(part, schema)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _typed(value, part.get("type", ()))
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


def _typed(value: int | float, wanted: str | list[str]) -> int | float:
    """`value` as float or int where the schema wants that; 1.5 for an integer stays, to be refused."""
    if "number" in wanted:
        return float(value)
    return int(value) if "integer" in wanted and value % 1 == 0 else value


def _expanded(part: Json, schema: Json) -> Json:
    """A part of the schema with its `$ref` followed; keys beside the reference win."""
    while "$ref" in part:
        target = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
        part = target | {key: value for key, value in part.items() if key != "$ref"}
    return part


def _merged_chain(name: str, written: Mapping[str, Json]) -> Json:
    chain: list[str] = []
    ancestor: str | None = name
    while ancestor is not None:
        if not isinstance(ancestor, str):
            raise ConfigError(f"{chain[-1]}.extends: {ancestor!r} is no name of an experiment")
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


def _without_null_moments(experiment: Json) -> Json:
    """`experiment` without `reference.moments: null`, with which a child says that it does not want its parent's."""
    reference = experiment.get("reference")
    if not isinstance(reference, dict) or reference.get("moments", ...) is not None:
        return experiment
    return experiment | {"reference": {key: value for key, value in reference.items() if key != "moments"}}


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
    elif error.validator == "type" and isinstance(value, str) and (number := _number(value)):
        yield f"{place}: '{value}' is a string to YAML, not a number; write {number}"
    else:
        yield f"{place}: {error.message}"


def _number(text: str) -> str | None:
    """`text` spelt as YAML reads a number (1000, or a dot and a signed exponent), None if it is no number."""
    try:
        value = float(text)
    except ValueError:
        return None
    whole = value.is_integer() and abs(value) < 1e9
    return yaml.safe_dump(int(value) if whole else value).split("\n")[0]


def _raise(faults: Iterable[str]) -> None:
    if lines := sorted(set(faults)):
        raise ConfigError("\n".join(lines))
