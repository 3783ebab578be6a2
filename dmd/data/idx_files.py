"""IDX files, the format of MNIST: a header of big-endian sizes, then bytes; plain or gzipped.

The header is two zero bytes, the type of the elements, the number of dimensions, and the size of each in four bytes
(http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dmd.provenance import outside_files

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
UINT8 = 0x08
WHAT = "an IDX file"
MAX_BYTES = 2**32  # of the elements; EMNIST has 6e8
PIECE = 2**20  # bytes read at once: a header may promise what the file does not hold
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxFile:
    """Attributes:
    values: uint8, with the dimensions of the header.
    sha256: of the uncompressed content.
    """

    path: Path
    values: np.ndarray
    sha256: str


def read(path: Path, dimensions: int) -> IdxFile:
    """Reads a whole file; whether it is gzipped is told by its first bytes, not by its name.

    Args:
        dimensions: 3 for images, 1 for labels.

    Raises:
        ValueError: the file cannot be read or is no IDX file; its elements are not uint8; it has another number of
            dimensions, fewer or more bytes than its sizes say, no elements, or more than `MAX_BYTES`.
    """
    with outside_files.reading(path, WHAT):
        with path.open("rb") as plain:
            zipped = plain.read(2) == GZIP
        stream: IO[bytes] = gzip.open(path) if zipped else path.open("rb")  # type: ignore[assignment]
        with stream:
            return _parse(path, stream, dimensions)


def _parse(path: Path, stream: IO[bytes], dimensions: int) -> IdxFile:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES:
        raise ValueError(f"it begins with {magic.hex(' ') or 'nothing'}, not with 00 00 and the type of elements")
    if magic[2] != UINT8:
        raise ValueError(f"its elements are {TYPES[magic[2]]}, not uint8")
    if magic[3] != dimensions:
        role = {1: "labels", 3: "images"}
        raise ValueError(f"it has {magic[3]} dimensions, but {role[dimensions]} have {dimensions}: is it another file?")
    header = stream.read(4 * dimensions)
    sizes = [int(size) for size in np.frombuffer(header, ">u4")] if len(header) == 4 * dimensions else []
    num = math.prod(sizes)
    if not sizes or not 0 < num <= MAX_BYTES:
        raise ValueError(f"its header has the sizes {sizes}: it must hold 1 to {MAX_BYTES} elements")
    content = bytearray()
    while len(content) < num and (piece := stream.read(min(PIECE, num - len(content)))):
        content += piece
    if len(content) < num:
        raise ValueError(f"it ends early: {len(content)} bytes of {num} ({' x '.join(map(str, sizes))})")
    if stream.read(1):  # of a gzipped file this also compares its checksum
        raise ValueError(f"it goes on after the {num} bytes that its header names ({' x '.join(map(str, sizes))})")
    digest = hashlib.sha256(magic + header)
    digest.update(content)
    return IdxFile(path, np.frombuffer(content, np.uint8).reshape(sizes), digest.hexdigest())


def labelled(images: IdxFile, labels: IdxFile, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, R, R) and labels (N,), uint8; ValueError unless there are as many, and the images have side R."""
    if len(images.values) != len(labels.values):
        raise ValueError(
            f"{images.path} has {len(images.values)} images, but {labels.path} has {len(labels.values)} labels"
        )
    if (shape := images.values.shape[1:]) != (resolution, resolution):
        raise ValueError(
            f"{images.path} has images of {shape[0]} x {shape[1]} pixels, but dataset.resolution is {resolution}"
        )
    return images.values, labels.values


def check_classes(labels: np.ndarray, classes: np.ndarray, path: Path) -> None:
    """ValueError for a held-out label that no training image has."""
    if unknown := sorted({*np.unique(labels).tolist()} - {*classes.tolist()}):
        raise ValueError(f"{path}: the labels {unknown[:10]} are those of no training image")
