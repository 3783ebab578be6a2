"""Reads configuration files and the files that they include; checks that values are JSON values."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmd.config.messages import ConfigError
from dmd.config.section_base import SOURCES

Json = dict[str, Any]
GROUPS = ("experiments", "tables", "charts", "inputs")  # keys of an included file
MAX_VALUES, MAX_DEPTH = 1_000_000, 32  # a YAML file of a few lines can exceed them by aliases


class KeysOnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a mapping with the same key twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            name = key.tag, key.value
            if name in lines:
                where = f"in line {lines[name]} and in line {line}"
                raise ConfigError(f'the key "{key.value}" stands twice in a mapping: {where}')
            lines[name] = line
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Json:
    """Reads one YAML mapping; ConfigError if the file is missing, is not a YAML mapping, or has a key twice."""
    try:
        value = yaml.load(Path(path).read_text(), Loader=KeysOnceLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


@dataclass
class _Included:
    """Files read so far, as one mapping.

    Attributes:
        origins: file of each entry, by group and name.
    """

    content: Json = field(default_factory=dict)
    origins: dict[tuple[str, str], Path] = field(default_factory=dict)


def read_file(path: Path) -> Json:
    """A configuration file with the entries of its included files, without the key `include`.

    Raises:
        ConfigError: a file cannot be read, includes itself, or repeats a name of another file.
    """
    included = _Included()
    _include(Path(path), included, ())
    return included.content


def _include(path: Path, included: _Included, chain: tuple[Path, ...]) -> None:
    if any(os.path.realpath(path) == os.path.realpath(other) for other in chain):
        raise ConfigError(f"include goes in a circle: {' -> '.join(map(str, [*chain, path]))}")
    value = read_yaml(path)
    names = value.pop("include", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{path}: include: {names!r} is not a list of files")
    for key, entry in value.items():
        if key not in GROUPS:
            if chain:
                raise ConfigError(f'{path}: an included file has {", ".join(GROUPS)}, not "{key}"')
            included.content[key] = entry
        elif not isinstance(entry, dict):
            if chain:
                raise ConfigError(f"{path}: {key}: {entry!r} is not a mapping")
            included.content[key] = entry
        else:
            for name in entry:
                if (other := included.origins.setdefault((key, str(name)), path)) is not path:
                    raise ConfigError(f"{key}.{name} stands in {other} and in {path}: rename one of the two")
            group = included.content.setdefault(key, {})
            if isinstance(group, dict):
                group.update(entry)
    for name in names:
        _include(path.parent / name, included, (*chain, path))


def update(config: Json, other: Mapping[str, Any]) -> Json:
    """Merges `other` into `config`, mappings deeply, as Snakemake merges several configuration files."""
    for key, value in other.items():
        deep = isinstance(value, Mapping)
        config[key] = update(config[key] if isinstance(config.get(key), dict) else {}, value) if deep else value
    return config


def unfit_values(value: Any) -> Iterator[str]:
    """Faults of values that JSON cannot represent: NaN, infinity, keys that are no text, too deep nesting."""
    waiting, num = [("", value, 0)], 0
    while waiting:
        path, item, depth = waiting.pop()
        where = path.lstrip(".") or "config"
        num += 1
        if depth > MAX_DEPTH or num > MAX_VALUES:
            yield f"{where}: nested more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values"
            return
        if isinstance(item, dict):
            yield from (f"{where}: the key {key!r} is no text" for key in item if not isinstance(key, str))
            waiting += [(f"{path}.{key}", inner, depth + 1) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{path}[{index}]", inner, depth + 1) for index, inner in enumerate(item)]
        elif isinstance(item, float) and not math.isfinite(item):
            yield f"{where}: {item} is not a finite number"
        elif not isinstance(item, str | int | float | None):
            yield f"{where}: {item!r} is a {type(item).__name__} to YAML; write it in quotes if it is text"


def normalise_paths(value: Any) -> Any:
    """`value` with each `file` relative to the current folder without `./` and `..`, or absolute if outside it."""
    if isinstance(value, list):
        return [normalise_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _normalise(item) if key == "file" and isinstance(item, str) else normalise_paths(item)
        for key, item in value.items()
    }


def _normalise(file: str) -> str:
    folder, path = os.getcwd(), os.path.abspath(file)
    if not file or os.path.commonpath([path, folder]) != folder:
        return file and path
    return os.path.relpath(path, folder)


def with_digests(value: Any, digests: Mapping[str, str]) -> Any:
    """`value` with the `sha256` from `digests` in each mapping that has a `file` and no `sha256`."""
    if isinstance(value, list):
        return [with_digests(item, digests) for item in value]
    if not isinstance(value, dict):
        return value
    mapping = {key: with_digests(item, digests) for key, item in value.items()}
    file = mapping.get("file")
    if isinstance(file, str) and file in digests and mapping.get("sha256") is None:
        mapping["sha256"] = digests[file]
    return mapping


def unpinned(value: Any) -> list[str]:
    """Paths of files and folders without a digest; these are identified by their path."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in unpinned(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in SOURCES if key in value and value.get("sha256") is None]
    return own + [path for inner in value.values() for path in unpinned(inner)]
