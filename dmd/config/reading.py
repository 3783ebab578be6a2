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
from dmd.config.source_files import fault

Json = dict[str, Any]
GROUPS = ("experiments", "tables", "charts", "inputs")  # keys of an included file
MAX_VALUES, MAX_DEPTH = 1_000_000, 32  # a YAML file of a few lines can exceed them by aliases
MAX_BYTES = 2**24  # of a YAML file
PATHS = (*SOURCES, "labels", "captions")  # keys; the last two may have a word instead, which is no other path
TEMPLATES = "__use_yte__"  # key of files in which Snakemake runs Python code
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Json:
    """Reads one YAML mapping.

    Raises:
        ConfigError: the file is missing, no file (such as a pipe, which never ends), no YAML mapping, too large, or one
            of templates, or `parse_yaml` refuses it.
    """
    if reason := fault(path):
        raise ConfigError(f"{path} {reason}")
    try:
        if (size := os.stat(path).st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes are more than {MAX_BYTES}")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    if TEMPLATES in value:
        raise ConfigError(f"{path}: {TEMPLATES}: templates, whose Python code would run, are not supported")
    return value


def parse_yaml(text: str, name: str) -> Any:
    """The value of one YAML document.

    Raises:
        ConfigError: no YAML, a key that is no text or that stands twice in a mapping, of which YAML would silently take
            the last, or more values than `MAX_VALUES` or deeper than `MAX_DEPTH`; the message begins with `name`.
    """
    try:
        _check_size(text)
        loader = SafeLoader(text)
        try:
            node = loader.get_single_node()
            _check_keys(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{name}: {error}") from error


def _check_size(text: str) -> None:
    """ConfigError if the values, with each alias in full, are too many or nested too deep; nothing is built."""
    num = 0
    anchors: dict[str, tuple[int, int]] = {}  # anchor -> number and depth of the values below it
    waiting: list[tuple[str | None, int, int]] = []  # open collections: anchor, number before it, depth below it
    for event in yaml.parse(text, Loader=SafeLoader):
        mark, depth = event.start_mark, 0
        line = mark.line + 1 if mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            waiting.append((event.anchor, num, 0))
            num += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, depth = waiting.pop()
            if anchor:
                anchors[anchor] = num - before, depth
            depth += 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, *_ in waiting):
                raise ConfigError(f"line {line}: *{event.anchor} stands inside of itself")
            size, depth = anchors.get(event.anchor or "", (1, 0))
            num, depth = num + size, depth + 1
        elif isinstance(event, yaml.ScalarEvent):
            num, depth = num + 1, 1
            if event.anchor:
                anchors[event.anchor] = 1, 0
        if waiting:
            anchor, before, deepest = waiting[-1]
            waiting[-1] = anchor, before, max(deepest, depth)
        if num > 2 * MAX_VALUES or len(waiting) + depth > MAX_DEPTH + 1:  # keys count as well
            raise ConfigError(
                f"line {line}: more than {MAX_VALUES} values or nested more than {MAX_DEPTH} deep, aliases in full"
            )


def _check_keys(root: yaml.Node | None) -> None:
    """ConfigError for a key that is no text or stands twice, with its line."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            waiting += [each for item in node.value for each in (item if isinstance(item, tuple) else [item])]
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (TEXT, MERGE):
                shown = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key"
                raise ConfigError(f"line {line}: {shown} is no text to YAML: write it in quotes")
            if key.value in lines:
                where = f"in line {lines[key.value]} and in line {line}"
                raise ConfigError(f'the key "{key.value}" stands twice in a mapping: {where}')
            lines[key.value] = line


@dataclass
class _Included:
    """Files read so far, as one mapping.

    Attributes:
        paths: real paths of the files.
        origins: file of each entry, by group and name.
    """

    content: Json = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)
    origins: dict[tuple[str, str], Path] = field(default_factory=dict)


def read_file(path: Path) -> Json:
    """A configuration file with the entries of its included files, without the key `include`.

    Raises:
        ConfigError: a file cannot be read, includes itself or is included twice, or repeats a name of another file.
    """
    included = _Included()
    _include(Path(path), included, ())
    return included.content


def _include(path: Path, included: _Included, chain: tuple[Path, ...]) -> None:
    if any(os.path.realpath(path) == os.path.realpath(other) for other in chain):
        raise ConfigError(f"include goes in a circle: {' -> '.join(map(str, [*chain, path]))}")
    if (real := os.path.realpath(path)) in included.paths:
        raise ConfigError(f"include: {path} is included twice; once is enough")
    included.paths.add(real)
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
        _include(path.parent / os.path.expanduser(name), included, (*chain, path))


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
    """`value` with each path relative to the current folder without `~`, `./` and `..`, or absolute if outside it."""
    if isinstance(value, list):
        return [normalise_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _normalise(item) if key in PATHS and isinstance(item, str) else normalise_paths(item)
        for key, item in value.items()
    }


def _normalise(file: str) -> str:
    folder, path = os.getcwd(), os.path.abspath(os.path.expanduser(file))
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
