"""A folder of image files as square 8-bit pixels, with labels from sub-folders or a CSV file.

Conversion: EXIF rotation is applied; transparency (RGBA, LA, palettes) is composited on white; 16-bit grey is scaled
to 8 bits, not clipped; CMYK and other colour spaces become RGB; of an animation the first frame is taken. Then the
image is cropped (`center`: the largest central square; `none`: it must be square) and resized by a Pillow filter.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for some others Pillow starts another program
DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)


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


def read(paths: Sequence[Path], *, resolution: int, channels: int, resize: str, crop: str) -> np.ndarray:
    """Pixels of image files, uint8 (N, channels, resolution, resolution).

    Raises:
        ValueError: unknown setting, or a file (named) that is damaged, not square under crop `none`, or without a
            known range of values (floating point, integers beyond 16 bits).
    """
    if resize not in FILTERS:
        raise ValueError(f"dataset.resize {resize!r} is none of {', '.join(FILTERS)}")
    if crop not in ("center", "none"):
        raise ValueError(f"dataset.crop {crop!r} is neither center nor none")
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels is {channels}, not 1 or 3")
    pixels = np.empty((len(paths), channels, resolution, resolution), np.uint8)
    for index, path in enumerate(paths):
        image = _square(_eight_bit(path, "L" if channels == 1 else "RGB"), path, crop)
        if image.size != (resolution, resolution):
            image = image.resize((resolution, resolution), FILTERS[resize])
        pixels[index] = np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)
    return pixels


def sha256(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _eight_bit(path: Path, mode: str) -> Image.Image:
    """The upright image in an 8-bit mode."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if image.mode == "F":
        raise ValueError(f"{path} holds floating-point values, whose range is unknown")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"{path} holds integers from {levels.min()} to {levels.max()}, not 16-bit levels")
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB" if image.mode != "1" else "L")
    return image.convert(mode)


def _square(image: Image.Image, path: Path, crop: str) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    if crop == "none":
        raise ValueError(f"{path} is {width} x {height} pixels: not square, and dataset.crop is none")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
