"""WebDataset shards: one tar of `.npy` members per item, the same bytes for the same content.

A shard starts with `__meta__/record.json`, which WebDataset skips. Readers first compare size and sha256
with the manifest: WebDataset itself silently ignores the missing end of a truncated tar.
"""

import json
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd.data import npy
from dmd.provenance import files

BLOCK_SIZE = tarfile.BLOCKSIZE
RECORD_KEY = "__meta__/record"
MEMBER = re.compile(r"([0-9]{8,15})\.([a-z][a-z0-9_-]*)\.npy")  # other names are refused: none is used as a path

Item = dict[str, np.ndarray]  # field -> array: image and label, for pairs also noise, text, trajectory


@dataclass(frozen=True)
class Extent:
    """The bytes of one item in its tar: the first one, and how many."""

    offset: int
    length: int


class _Member(NamedTuple):
    """A file in a tar: `start` of its header, start (`data`) and `size` of its content, `stop` after its padding."""

    number: int
    field: str
    start: int
    data: int
    size: int
    stop: int


def write(path: Path, items: Iterable[tuple[int, Item]], record: Mapping[str, Any]) -> None:
    """Writes (global index, fields) to exactly `path`, members `{index:08d}.{field}.npy` sorted by field."""
    from webdataset import TarWriter

    with open(path, "wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        writer.write({"__key__": RECORD_KEY, "json": files.canonical_json(record).encode()})
        for index, fields in items:
            members = {f"{name}.npy": npy.encoded(array) for name, array in fields.items()}
            writer.write({"__key__": f"{index:08d}", **members})


def read_record(path: Path) -> dict[str, Any] | None:
    """The record that a shard begins with; None if the file is no shard of a stage."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(BLOCK_SIZE)
            return parse_record(head + stream.read(min(_member(head, 0)[1], path.stat().st_size)))
    except (OSError, ValueError):
        return None


def parse_record(head: bytes) -> dict[str, Any] | None:
    """The record in the first bytes of a shard; None if they are too few, or not those of a shard of a stage."""
    try:
        name, size = _member(head, 0)
        if name != f"{RECORD_KEY}.json":
            return None
        content = json.loads(head[BLOCK_SIZE : BLOCK_SIZE + size])
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read(path: Path) -> Iterator[tuple[int, Item]]:
    """All items of a shard in order, as (global index, fields)."""
    with Shard(path) as shard:
        yield from shard.items()


class Shard:
    """An open shard, read by random access through a memory map; arrays are views of it: copy those that are kept."""

    def __init__(self, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Opens a shard, after comparing it with what its manifest says.

        Raises:
            ValueError: the shard is missing, or its size or sha256 differ from the manifest's.
        """
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path} is missing: run `make verify`, then snakemake again")
        num_bytes = path.stat().st_size
        if num_bytes < BLOCK_SIZE:
            raise ValueError(f"{path} has {num_bytes} bytes: truncated? run `make verify`")
        if size is not None and num_bytes != size:
            raise ValueError(f"{path} has {num_bytes} bytes, its manifest says {size}: truncated? run `make verify`")
        if sha256 is not None and (digest := files.sha256(path)) != sha256:
            raise ValueError(f"{path} is damaged: sha256 {digest}, its manifest says {sha256}: run `make verify`")
        self._stream = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._map = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)

    def item(self, extent: Extent) -> Item:
        """The fields of the item at `extent`; ValueError if the shard is damaged or too short."""
        if not 0 <= extent.offset <= extent.offset + extent.length <= len(self._map):
            raise ValueError(f"{self.path} has {len(self._map)} bytes, too few for {extent.length} at {extent.offset}")
        members = list(self._walk(extent.offset, extent.offset + extent.length))
        try:
            return {member.field: npy.array(self._map, member.data, member.size) for member in members}
        except ValueError as error:
            raise self._damaged(error) from error

    def items(self) -> Iterator[tuple[int, Item]]:
        """All items in order, as (global index, fields)."""
        for index, extent in self.index():
            yield index, self.item(extent)

    def index(self) -> Iterator[tuple[int, Extent]]:
        """Global index and extent of all items in order; reads only headers."""
        index, start, stop = -1, 0, 0
        for member in self._walk(0, len(self._map)):
            if member.number != index:
                if index >= 0:
                    yield index, Extent(start, stop - start)
                index, start = member.number, member.start
            stop = member.stop
        if index >= 0:
            yield index, Extent(start, stop - start)

    def _walk(self, start: int, stop: int) -> Iterator[_Member]:
        while start + BLOCK_SIZE <= stop and self._map[start]:  # tar ends with blocks of zeros
            try:
                name, size = _member(self._map[start : start + BLOCK_SIZE], start)
            except ValueError as error:
                raise self._damaged(error) from error
            data = start + BLOCK_SIZE
            end = data + -(-size // BLOCK_SIZE) * BLOCK_SIZE
            if end > len(self._map):
                raise ValueError(f"{self.path} is truncated inside {name}: run `make verify`")
            if not name.startswith("__meta__/"):
                if (member := MEMBER.fullmatch(name)) is None:
                    raise self._damaged(f"member {name!r}")
                yield _Member(int(member[1]), member[2], start, data, size, end)
            start = end

    def _damaged(self, reason: object) -> ValueError:
        return ValueError(f"{self.path} is damaged: {reason}: run `make verify`")

    def close(self) -> None:
        """Closes the file; arrays that still view it keep the map alive."""
        self._stream.close()

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _member(header: bytes, start: int) -> tuple[str, int]:
    try:
        name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError as error:
        raise ValueError(f"not a tar header at byte {start}") from error
    if size < 0:
        raise ValueError(f"not a tar header at byte {start}: it claims {size} bytes")
    return name, size
