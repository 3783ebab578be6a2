"""Names of the image files in a folder, and their labels from sub-folders or a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from dmd.data.image_file import SUFFIXES


def names(folder: Path) -> list[str]:
    """Relative POSIX names of all image files under `folder`, sorted; hidden files and other file types are skipped.

    Raises:
        ValueError: the folder is missing, or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"dataset.folder {folder} is not a folder")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    if not visible:
        raise ValueError(f"dataset.folder {folder} holds no images ({' '.join(sorted(SUFFIXES))})")
    return visible


def labels(folder: Path, names: Sequence[str], source: str) -> tuple[list[int], int]:
    """Class indices of the files, and the number of classes.

    Args:
        names: file names relative to `folder`.
        source: `none` (all -1), `folders` (a class per first-level sub-folder, sorted), or the path of a CSV file with
            the columns file (relative to `folder`) and label. Integer labels sort as numbers, others as text.

    Raises:
        ValueError: a file without a label, a CSV row without a file, or a file listed twice; each is named.
    """
    if source == "none":
        return [-1] * len(names), 0
    if source == "folders":
        loose = [name for name in names if "/" not in name]
        if loose:
            raise ValueError(f"{folder / loose[0]} has no label: dataset.labels is folders, it lies in no sub-folder")
        classes = {name: name.split("/", 1)[0] for name in names}
    else:
        classes = _csv_labels(folder, names, Path(source))
    distinct = set(classes.values())
    numeric = all(label.lstrip("-").isdecimal() for label in distinct)
    order = {label: index for index, label in enumerate(sorted(distinct, key=_number if numeric else _text))}
    return [order[classes[name]] for name in names], len(order)


def _number(label: str) -> tuple[int, str]:
    return int(label), label


def _text(label: str) -> tuple[int, str]:
    return 0, label


def _csv_labels(folder: Path, names: Sequence[str], path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"dataset.labels {path} is not none, not folders, and not a file")
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}, not file and label")
        by_name: dict[str, str] = {}
        known = set(names)
        for row in rows:
            name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
            if name not in known:
                raise ValueError(f"{path}, line {rows.line_num}: no image {name!r} in {folder}")
            if name in by_name:
                raise ValueError(f"{path}, line {rows.line_num}: {name!r} is listed twice")
            if not label:
                raise ValueError(f"{path}, line {rows.line_num}: {name!r} has no label")
            by_name[name] = label
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{folder / missing[0]} has no label in {path} ({len(missing)} such files)")
    return by_name
