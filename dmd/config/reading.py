"""Configuration files as mappings: YAML, the files that they include, and values that JSON has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmd.config.messages import ConfigError
from dmd.config.section import SOURCES

Json = dict[str, Any]
GROUPS = ("experiments", "tables", "charts", "inputs")  # what a file that is included adds to
MAX_VALUES, MAX_DEPTH = 1_000_000, 32  # what a YAML file of a few lines can exceed by repeating itself


class KeysOnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

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
    """One YAML mapping; ConfigError if the file is missing, broken or holds something else, or a key twice."""
    try:
        value = yaml.load(Path(path).read_text(), Loader=KeysOnceLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


@dataclass
class _Included:
    """What was read so far.

    Attributes:
        origins: file of each entry, by group and name.
    """

    whole: Json = field(default_factory=dict)
    origins: dict[tuple[str, str], Path] = field(default_factory=dict)


def read_file(path: Path) -> Json:
    """A configuration file with the entries of all that it includes, and without `include`.

    Raises:
        ConfigError: a file that cannot be read, includes itself, or repeats a name of another.
    """
    found = _Included()
    _include(Path(path), found, ())
    return found.whole


def _include(path: Path, found: _Included, chain: tuple[Path, ...]) -> None:
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
            found.whole[key] = entry
        elif not isinstance(entry, dict):
            if chain:
                raise ConfigError(f"{path}: {key}: {entry!r} is not a mapping")
            found.whole[key] = entry
        else:
            for name in entry:
                if (other := found.origins.setdefault((key, str(name)), path)) is not path:
                    raise ConfigError(f"{key}.{name} stands in {other} and in {path}: rename one of the two")
            group = found.whole.setdefault(key, {})
            if isinstance(group, dict):
                group.update(entry)
    for name in names:
        _include(path.parent / name, found, (*chain, path))


def update(whole: Json, other: Mapping[str, Any]) -> Json:
    """`whole` with the values of `other`, mappings deeply: what Snakemake makes of several configuration files."""
    for key, value in other.items():
        deep = isinstance(value, Mapping)
        whole[key] = update(whole[key] if isinstance(whole.get(key), dict) else {}, value) if deep else value
    return whole


def unfit_values(value: Any) -> Iterator[str]:
    """Faults of values that no JSON holds: numbers that are none, keys that are no text, nests without end."""
    waiting, num = [("", value, 0)], 0
    while waiting:
        place, item, depth = waiting.pop()
        where = place.lstrip(".") or "config"
        num += 1
        if depth > MAX_DEPTH or num > MAX_VALUES:
            yield f"{where}: values within values, more than {MAX_DEPTH} deep or {MAX_VALUES} in all"
            return
        if isinstance(item, dict):
            yield from (f"{where}: the key {key!r} is no text" for key in item if not isinstance(key, str))
            waiting += [(f"{place}.{key}", inner, depth + 1) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{place}[{index}]", inner, depth + 1) for index, inner in enumerate(item)]
        elif isinstance(item, float) and not math.isfinite(item):
            yield f"{where}: {item} is no number that can be used"
        elif not isinstance(item, str | int | float | None):
            yield f"{where}: {item!r} is a {type(item).__name__} to YAML; write it in quotes if it is text"


def placed(value: Any) -> Any:
    """`value` with one spelling of each `file`: below the folder of the run without `./` or `..`, else absolute."""
    if isinstance(value, list):
        return [placed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _place(item) if key == "file" and isinstance(item, str) else placed(item) for key, item in value.items()
    }


def _place(file: str) -> str:
    here, whole = os.getcwd(), os.path.abspath(file)
    if not file or os.path.commonpath([whole, here]) != here:
        return file and whole
    return os.path.relpath(whole, here)


def with_digests(value: Any, digests: Mapping[str, str]) -> Any:
    """`value` with the digest in `digests` in each mapping that names a `file` and has no `sha256` of its own."""
    if isinstance(value, list):
        return [with_digests(item, digests) for item in value]
    if not isinstance(value, dict):
        return value
    whole = {key: with_digests(item, digests) for key, item in value.items()}
    file = whole.get("file")
    if isinstance(file, str) and file in digests and whole.get("sha256") is None:
        whole["sha256"] = digests[file]
    return whole


def unpinned(value: Any) -> list[str]:
    """Files and folders from outside whose digest nobody knows: in place of a digest, their paths tell them apart."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in unpinned(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in SOURCES if key in value and value.get("sha256") is None]
    return own + [path for inner in value.values() for path in unpinned(inner)]
