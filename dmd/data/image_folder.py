"""Names of the image files in a folder, and their labels from sub-folders or a CSV file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dmd.config import source_files
from dmd.data import csv_table

NUMBER = re.compile(r"-?\d{1,18}")  # a label that sorts as a number


def names(folder: Path) -> list[str]:
    """Relative POSIX names of all image files under `folder`, sorted; hidden files and other file types are skipped.

    Raises:
        ValueError: the folder is missing or holds no image, or a file cannot be read, see `source_files.images`.
    """
    found = source_files.images(folder)
    if not found.names:
        raise ValueError(f"dataset.folder {folder} holds no images ({' '.join(sorted(source_files.IMAGES))})")
    return found.names


def passed_over(folder: Path) -> str:
    """How many files of a folder are not read, by suffix, such as "3 files passed over: 2 .txt, 1 hidden"; or ""."""
    counts = sorted(source_files.images(folder).passed_over.items())
    total = sum(count for _, count in counts)
    return f"{total} files passed over: {', '.join(f'{count} {kind}' for kind, count in counts)}" if total else ""


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
    numeric = all(NUMBER.fullmatch(label) for label in distinct)
    order = {label: index for index, label in enumerate(sorted(distinct, key=_number if numeric else _text))}
    return [order[classes[name]] for name in names], len(order)


def _number(label: str) -> tuple[int, str]:
    return int(label), label


def _text(label: str) -> tuple[int, str]:
    return 0, label


def _csv_labels(folder: Path, names: Sequence[str], path: Path) -> dict[str, str]:
    """Label of each image that the table names; rows of blank cells are passed over.

    A table that is neither UTF-8 nor UTF-16 is read as Latin-1: a wrong letter in a name would match no image.
    """
    if not path.exists():
        raise ValueError(f"dataset.labels {path} is not none, not folders, and not a file")
    on_disk = Names(names)
    by_name: dict[str, str] = {}
    for line, row in csv_table.rows(path, ("file", "label"), "a table of labels", otherwise="latin-1"):
        listed, label = row["file"], row["label"]
        if (name := on_disk.find(listed)) is None:
            raise ValueError(f"{path}, line {line}: no image {listed[:200]!r} in {folder}")
        if name in by_name:
            raise ValueError(f"{path}, line {line}: {name!r} is listed twice")
        if not label:
            raise ValueError(f"{path}, line {line}: {name!r} has no label")
        by_name[name] = label
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{folder / missing[0]} has no label in {path} ({len(missing)} such files)")
    return by_name


class Names:
    """Names of files, found also by another Unicode normal form of theirs, unless two files have the same."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._by_form: dict[str, list[str]] = {}
        for name in names:
            self._by_form.setdefault(unicodedata.normalize("NFC", name), []).append(name)

    def find(self, name: str) -> str | None:
        """The name on the disk; None if there is none, or several."""
        if name in self._names:
            return name
        found = self._by_form.get(unicodedata.normalize("NFC", name), ())
        return found[0] if len(found) == 1 else None
