"""What a configuration is written of: values that JSON has, and files from outside with digests, known or not."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

SOURCES = ("file", "folder")  # keys beside which a `sha256` may stand

MAX_VALUES, MAX_DEPTH = 1_000_000, 32  # what a YAML file of a few lines can exceed by repeating itself


def unfit_values(value: Any) -> Iterator[str]:
    """Faults of values that no JSON holds: numbers that are none, keys that are no text, nests without end."""
    waiting, num = [("", value, 0)], 0
    while waiting:
        place, found, depth = waiting.pop()
        where = place.lstrip(".") or "config"
        num += 1
        if depth > MAX_DEPTH or num > MAX_VALUES:
            yield f"{where}: values within values, more than {MAX_DEPTH} deep or {MAX_VALUES} in all"
            return
        if isinstance(found, dict):
            yield from (f"{where}: the key {key!r} is no text" for key in found if not isinstance(key, str))
            waiting += [(f"{place}.{key}", item, depth + 1) for key, item in found.items()]
        elif isinstance(found, list):
            waiting += [(f"{place}[{index}]", item, depth + 1) for index, item in enumerate(found)]
        elif isinstance(found, float) and not math.isfinite(found):
            yield f"{where}: {found} is no number that can be used"
        elif not isinstance(found, str | int | float | None):
            yield f"{where}: {found!r} is a {type(found).__name__} to YAML; write it in quotes if it is text"


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


def with_digests(value: Any, digests: Mapping[str, str | None]) -> Any:
    """`value` with a `sha256` in each mapping that names a `file`: its own, else the one in `digests`, else None."""
    if isinstance(value, list):
        return [with_digests(item, digests) for item in value]
    if not isinstance(value, dict):
        return value
    whole = {key: with_digests(item, digests) for key, item in value.items()}
    return whole if "file" not in whole else whole | {"sha256": whole.get("sha256") or digests.get(whole["file"])}


def unpinned(value: Any) -> list[str]:
    """Files and folders from outside whose digest nobody knows: in place of a digest, their paths tell them apart."""
    if isinstance(value, list):
        return [path for item in value for path in unpinned(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in SOURCES if key in value and value.get("sha256") is None]
    return own + [path for inner in value.values() for path in unpinned(inner)]
