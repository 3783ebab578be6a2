"""Tar files, written fast: a header is a template, and many members are one write."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Sequence

BLOCK_SIZE = tarfile.BLOCKSIZE  # bytes
Bytes = bytes | memoryview


def member(name: str, content: Sequence[Bytes]) -> list[Bytes]:
    """Header, content and padding of one file, which belongs to nobody and has no time.

    Raises:
        ValueError: the name does not fit into a header.
    """
    if not 0 < len(name.encode()) <= tarfile.LENGTH_NAME:
        raise ValueError(f"{name!r} has {len(name.encode())} bytes, a name in a shard 1 to {tarfile.LENGTH_NAME}")
    size = sum(memoryview(part).nbytes for part in content)
    return [_header(name.encode(), size), *content, bytes(-size % BLOCK_SIZE)]


def end(written: int) -> list[Bytes]:
    """What closes a tar of `written` bytes: two empty blocks, and more of them to a multiple of tar's record."""
    whole = -(-(written + 2 * BLOCK_SIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return [bytes(whole - written)]


def write(stream: io.FileIO, parts: Sequence[Bytes]) -> int:
    """Writes all parts at once to an unbuffered stream; how many bytes they have."""
    whole = memoryview(b"".join(parts))
    done = 0
    while done < len(whole):  # a disk that is nearly full takes the first ones, and refuses the next write
        done += stream.write(whole[done:])
    return done


def _header(name: bytes, size: int) -> bytes:
    """The header that tarfile writes in format ustar: name in front, its share in the checksum at byte 148."""
    rest, checksum = _nameless(size)
    return name.ljust(tarfile.LENGTH_NAME, b"\0") + rest[:48] + b"%06o" % (checksum + sum(name)) + rest[54:]


@functools.lru_cache(maxsize=64)
def _nameless(size: int) -> tuple[bytes, int]:
    """A header behind its name, and its checksum while it has none."""
    info = tarfile.TarInfo()
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"  # as webdataset's TarWriter
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header[tarfile.LENGTH_NAME :], int(header[148:154], 8)
