"""Captions of images: a table with a row per caption, and the fields of an image's row in a shard that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmd.data import csv_table
from dmd.data.image_folder import Names
from dmd.data.prompts import MOST_CHARACTERS

FIELDS = {"training": "captions", "held_out": "held_out_captions"}  # split of captions -> field of a row in a shard
CODE_POINT = "codepoint"  # column of a table for glyphs


class Captions(NamedTuple):
    """The captions of one image: those to train on, and those kept from every training, to test with."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def fields(self) -> dict[str, np.ndarray]:
        """The fields of the image's row in a shard; a split without captions has none."""
        splits = zip(FIELDS.values(), self, strict=True)
        return {name: _encoded(texts) for name, texts in splits if texts}


def of_fields(fields: Mapping[str, np.ndarray]) -> Captions:
    """The captions in a row of a shard; none where it has no such fields."""
    return Captions(*(_decoded(fields[name]) if name in fields else () for name in FIELDS.values()))


def of_files(path: Path, names: Sequence[str], folder: Path) -> list[Captions]:
    """The captions of each image of a folder.

    Args:
        path: table with the columns file (relative to `folder`) and caption, one row per caption. In a column split
            `training` or nothing is a caption to train on, `held_out` one that is kept from training.
        names: of the images, relative to `folder`.

    Raises:
        ValueError: the table cannot be read, names an image that is not there, or lacks captions for one; a caption is
            blank, too long, or in both splits.
    """
    known = Names(names)
    by_name: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in names}
    for line, row in csv_table.rows(path, ("file", "caption"), "a table of captions", optional=("split",)):
        if (name := known.find(row["file"])) is None:
            raise ValueError(f"{path}, line {line}: no image {row['file'][:200]!r} in {folder}")
        _add(by_name[name], row, f"{path}, line {line}")
    return _complete(by_name, path)


def of_code_points(path: Path) -> dict[str, Captions]:
    """The captions of each character of a table with the columns codepoint (hexadecimal), caption and split.

    Characters come in the order of the table; split as for `of_files`.

    Raises:
        ValueError: as `of_files`, or a code point is no character.
    """
    by_name: dict[str, tuple[list[str], list[str]]] = {}
    for line, row in csv_table.rows(path, (CODE_POINT, "caption"), "a table of captions", optional=("split",)):
        place = f"{path}, line {line}"
        _add(by_name.setdefault(_character(row[CODE_POINT], place), ([], [])), row, place)
    return dict(zip(by_name, _complete(by_name, path), strict=True))


def _character(text: str, place: str) -> str:
    try:
        character = chr(int(text.upper().removeprefix("U+"), 16))
        character.encode()  # raises for a surrogate
    except (ValueError, OverflowError):
        raise ValueError(f"{place}: {text[:80]!r} is no code point in hexadecimal digits, such as 1F349") from None
    return character


def _add(captions: tuple[list[str], list[str]], row: Mapping[str, str], place: str) -> None:
    """Adds the caption of a row; ValueError if it cannot be used."""
    text, split = " ".join(row["caption"].split()), row.get("split", "") or "training"
    if not text:
        raise ValueError(f"{place}: the caption is blank")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{place}: the caption has {len(text)} characters, more than {MOST_CHARACTERS}")
    if split not in FIELDS:
        raise ValueError(f"{place}: split {split[:80]!r} is none of {', '.join(FIELDS)}")
    own = captions[0] if split == "training" else captions[1]
    if text not in own:
        own.append(text)


def _complete(by_name: Mapping[str, tuple[list[str], list[str]]], path: Path) -> list[Captions]:
    """The captions of all images.

    Raises:
        ValueError: there is no image, an image has no caption to train on, or a caption is in both splits.
    """
    if not by_name:
        raise ValueError(f"{path} has no captions")
    if missing := [name for name, (training, _) in by_name.items() if not training]:
        raise ValueError(f"{path} has no training caption of {missing[0]!r} ({len(missing)} such images)")
    trained_on = {text: name for name, (training, _) in by_name.items() for text in training}
    for name, (_, held_out) in by_name.items():
        if both := [text for text in held_out if text in trained_on]:
            raise ValueError(
                f"{path}: the held-out caption {both[0][:80]!r} of {name!r} is a training caption of "
                f"{trained_on[both[0]]!r}: held-out captions are kept from every training, so remove one of the two"
            )
    return [Captions(tuple(training), tuple(held_out)) for training, held_out in by_name.values()]


def _encoded(texts: Sequence[str]) -> np.ndarray:
    """Texts without line breaks as UTF-8 lines, uint8 (bytes,)."""
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def _decoded(lines: np.ndarray) -> tuple[str, ...]:
    return tuple(lines.tobytes().decode().split("\n"))
