"""Parquet tables with one row per item: its shard, the place of its bytes there, and the digest of the shard."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmd.data.columns import numbers, texts
from dmd.data.shards import Shard
from dmd.provenance import files, outside_files

KEY = b"dmd"
VERIFY = ": run `make verify`"
MOST_ROWS = 256  # per byte of a file: each row has numbers of its own, which take more when compressed
ROW_GROUP = 1 << 20  # rows; the number that pyarrow takes by default
BATCH = 1 << 16  # rows read at a time
RANGE_KEYS = ("first", "last", "num_samples")  # keys of a spec on which the content of a shard does not depend
COUNTS = ("num_truncated",)  # facts that add up over shards; all others are equal in every shard
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # "00000012", the tar members' name
        ("shard", pa.string()),  # path relative to the folder of the table
        ("index", pa.int64()),  # global
        ("label", pa.int64()),  # -1 = none
        ("seed", pa.int64()),  # that noise, then label, are drawn from; -1 = none
        ("offset", pa.int64()),  # bytes into the shard
        ("length", pa.int64()),
        ("size", pa.int64()),  # of the shard, bytes
        ("sha256", pa.string()),  # of the shard
    ]
)


@dataclass(frozen=True)
class ShardFile:
    """A tar, its expected size and digest, and its rows in the table: first .. first + num - 1."""

    path: Path
    size: int
    sha256: str
    first: int
    num: int


@dataclass(frozen=True)
class Manifest:
    """A table with the columns of `SCHEMA`: its shards in order and its metadata; the rows are read on demand."""

    path: Path
    shards: list[ShardFile]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return self.shards[-1].first + self.shards[-1].num if self.shards else 0

    @cached_property
    def table(self) -> pa.Table:
        """All rows and columns in memory: for blocks, not for millions of rows."""
        return read_table(self.path, repeated=("shard", "sha256"))[0]

    def numbers(self, name: str) -> np.ndarray:
        """One column of numbers, int64 (rows,)."""
        values, done = np.empty(len(self), np.int64), 0
        with _open(self.path) as file:
            for batch in file.iter_batches(BATCH, columns=[name]):
                values[done : done + len(batch)] = np.from_dlpack(batch.column(0))
                done += len(batch)
        return values


def rows_of(shard: Shard, name: str, *, size: int, sha256: str, first_seed: int | None) -> pa.Table:
    """The rows of one shard.

    Args:
        name: path of the shard, relative to the folder of the table.
        size, sha256: of its file.
        first_seed: item i was drawn from seed first_seed + i; None writes -1.
    """
    rows = [(index, extent, int(shard.item(extent)["label"])) for index, extent in shard.index()]
    columns = {
        "key": texts([f"{index:08d}" for index, _, _ in rows]),
        "shard": texts([name] * len(rows)),
        "index": numbers([index for index, _, _ in rows]),
        "label": numbers([label for _, _, label in rows]),
        "seed": numbers([-1 if first_seed is None else first_seed + index for index, _, _ in rows]),
        "offset": numbers([extent.offset for _, extent, _ in rows]),
        "length": numbers([extent.length for _, extent, _ in rows]),
        "size": numbers([size] * len(rows)),
        "sha256": texts([sha256] * len(rows)),
    }
    return pa.table(columns, schema=SCHEMA)


def write(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Writes exactly `path`; the same table gives the same bytes."""
    columns = [pa.field(field.name, getattr(field.type, "value_type", field.type)) for field in table.schema]
    pq.write_table(table.cast(_with_metadata(pa.schema(columns), metadata)), path, compression="zstd")


def write_parts(path: Path, parts: Iterable[pa.Table], metadata: Mapping[str, Any]) -> None:
    """Writes the same as `write` of all parts joined (columns of `SCHEMA`), with one row group in memory."""
    schema = _with_metadata(SCHEMA, metadata)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _row_groups(parts):
            writer.write_table(group.cast(schema), row_group_size=ROW_GROUP)


def _row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP` rows; the last one may have fewer."""
    waiting: list[pa.Table] = []
    room = ROW_GROUP
    for part in parts:
        while len(part):
            waiting.append(part.slice(0, room))
            part, room = part.slice(room), room - len(waiting[-1])
            if not room:
                yield pa.concat_tables(waiting)
                waiting, room = [], ROW_GROUP
    if waiting:
        yield pa.concat_tables(waiting)


def _with_metadata(schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.Schema:
    return schema.with_metadata({KEY: files.canonical_json(metadata).encode()})


def read_table(path: Path, *, repeated: Sequence[str] = ()) -> tuple[pa.Table, dict[str, Any]]:
    """A parquet table that a stage wrote, and its metadata; columns in `repeated` hold each value in memory once.

    Raises:
        ValueError: the file is missing, damaged, or has no `dmd` metadata.
    """
    with _open(path, repeated) as file:
        table = file.read()
    return table, _metadata(path, table.schema)


def read(path: Path) -> Manifest:
    """A manifest or block file.

    Its shards must lie below the grandparent of its folder. For a manifest this is the folder of results, since it may
    list shards of its experiment's parent (`../../parent/pairs/00000.tar`); for a block file, that of its experiment.
    Symbolic links are followed, since the digest of a shard is compared anyway.

    Raises:
        ValueError: the file cannot be read, its columns are not `SCHEMA`, or it names a shard elsewhere.
    """
    with outside_files.reading(path, "a table", advice=VERIFY):
        schema = pq.read_schema(path)
        names = schema.names  # damaged ones cannot be decoded
    metadata = _metadata(path, schema)
    if names != SCHEMA.names:
        raise ValueError(f"{path} has columns {names}, expected {SCHEMA.names}")
    if schema.types != SCHEMA.types:
        raise ValueError(f"{path} has columns of {', '.join(map(str, schema.types))}, which no manifest has")
    with _open(path) as file:
        starts = list(_starts(file))
        stops = [*(first for first, *_ in starts[1:]), file.metadata.num_rows]
    shards = [
        ShardFile(path=_shard_path(path, name), size=size, sha256=sha256, first=first, num=stop - first)
        for (first, name, size, sha256), stop in zip(starts, stops, strict=False)
    ]
    return Manifest(path, shards, metadata)


def _shard_path(path: Path, name: str) -> Path:
    """Path of the shard `name` of the manifest at `path`; ValueError if it leaves the tree or is not a tar."""
    top = os.path.abspath(path.parent / os.pardir / os.pardir)
    absolute = os.path.abspath(path.parent / name)
    if os.path.isabs(name) or "\0" in name or os.path.commonpath([absolute, top]) != top or Path(name).suffix != ".tar":
        raise ValueError(f"{path} lists {name!r:.200}, which is no shard below {top}: run `make verify`")
    return Path(os.path.normpath(path.parent / name))  # relative, for messages


def _starts(file: pq.ParquetFile) -> Iterator[tuple[int, str, int, str]]:
    """First row, name, size and sha256 of each shard, in order."""
    done, last = 0, None
    for batch in file.iter_batches(BATCH, columns=["shard", "size", "sha256"]):
        shard, size, sha256 = batch.columns
        if any(column.null_count for column in batch.columns):
            raise ValueError("cells are empty")
        codes, names = np.from_dlpack(shard.indices), shard.dictionary.to_pylist()
        for row in (0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist()):
            if (name := names[codes[row]]) != last:
                yield done + row, name, size[row].as_py(), sha256[row].as_py()
                last = name
        done += len(batch)


@contextlib.contextmanager
def _open(path: Path, repeated: Sequence[str] = ("shard", "sha256")) -> Iterator[pq.ParquetFile]:
    """The open table; ValueError for whatever is wrong while it is read."""
    with outside_files.reading(path, "a table", advice=VERIFY):
        with pq.ParquetFile(path, read_dictionary=list(repeated)) as file:
            if file.metadata.num_rows > (limit := MOST_ROWS * path.stat().st_size):
                raise ValueError(f"it claims {file.metadata.num_rows} rows, more than {limit}")
            yield file


def total_facts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of several shards or blocks together: those of the first, and for `COUNTS` the sums over all."""
    sums = {name: sum(part[name] for part in parts) for name in COUNTS if name in parts[0]}
    return {**parts[0], **sums}


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} has no 'dmd' metadata: it was not written by a stage of this project")
    return files.json_object(text, path)
