"""Files and folders from outside, as sections of the configuration name them: their digests, known or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

SOURCES = ("file", "folder")  # keys beside which a `sha256` may stand


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
