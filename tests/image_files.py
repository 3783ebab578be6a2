"""TIFF and PNG files with any fields, also contradictory ones, which Pillow does not write."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339


def packed(levels: Sequence[int], bits: int) -> bytes:
    """Levels of `bits` bits each, filled up to whole bytes."""
    text = "".join(format(level, f"0{bits}b") for level in levels)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def write_tiff(
    path: Path,
    data: bytes,
    *,
    bits: Sequence[int],
    photometric: int = 1,
    deflate: bool = False,
    order: str = "<",
    more: dict[int, Sequence[int]] | None = None,
) -> Path:
    """A TIFF of 8 x 8 pixels in one strip; `more` are further tags of 16-bit values."""
    data = zlib.compress(data) if deflate else data
    shorts = {256: [8], 257: [8], 258: bits, 259: [8 if deflate else 1], 262: [photometric], 277: [len(bits)], 278: [8]}
    tags = {tag: ("H", values) for tag, values in (shorts | (more or {})).items()} | {
        273: ("I", [8]),
        279: ("I", [len(data)]),
    }
    start = 8 + len(data) + len(data) % 2
    entries, tail, place = b"", b"", start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        if len(raw) > 4:
            entries += struct.pack(f"{order}I", place + len(tail))
            tail += raw
        else:
            entries += raw.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    content = head + data.ljust(start - 8, b"\0") + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + tail
    path.write_bytes(content)
    return path


def write_png(
    path: Path,
    rows: bytes,
    *,
    depth: int,
    colour: int,
    chunks: Sequence[tuple[bytes, bytes]] = (),
    size: tuple[int, int] = (8, 8),
) -> Path:
    """A PNG of colour type `colour` (0 grey, 2 RGB, 4 grey and alpha); each row begins with its filter, a byte 0."""
    head = b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [head, *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    return path
