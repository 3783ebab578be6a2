"""Parquet tables that say what lies where: one row per item, with the digest of the shard that holds it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dmd.artifacts import files

KEY = b"dmd"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # "00000012", the tar members' name
        ("shard", pa.string()),  # path relative to the folder of the table
        ("index", pa.int64()),  # global
        ("label", pa.int64()),  # -1 = none
        ("seed", pa.int64()),  # of noise, then label
        ("offset", pa.int64()),  # bytes into the shard
        ("length", pa.int64()),
        ("size", pa.int64()),  # of the shard, bytes
        ("sha256", pa.string()),  # of the shard
    ]
)


@dataclass(frozen=True)
class ShardFile:
    """A tar with what it must look like, and its rows in the table: first .. first + num - 1."""

    path: Path
    size: int
    sha256: str
    first: int
    num: int


@dataclass(frozen=True)
class Manifest:
    """A table (columns of `SCHEMA`), its shards in order, and its metadata."""

    path: Path
    table: pa.Table
    shards: list[ShardFile]
    metadata: dict[str, Any]


def write(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Writes exactly `path`; the same table gives the same bytes."""
    columns = [pa.field(field.name, getattr(field.type, "value_type", field.type)) for field in table.schema]
    schema = pa.schema(columns, metadata={KEY: files.canonical_json(metadata).encode()})
    pq.write_table(table.cast(schema), path, compression="zstd")


def read_table(path: Path, *, repeated: Sequence[str] = ()) -> tuple[pa.Table, dict[str, Any]]:
    """A parquet table written here, with its metadata; `repeated` columns hold each value in memory once.

    Raises:
        ValueError: the file is missing, damaged, or has no `dmd` metadata.
    """
    try:
        table = pq.read_table(path, read_dictionary=list(repeated))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}): run `make verify`") from error
    text = (table.schema.metadata or {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} has no 'dmd' metadata: it was not written by a stage of this project")
    return table, json.loads(text)


def read(path: Path) -> Manifest:
    """A manifest or block file; ValueError if its columns are not `SCHEMA`."""
    table, metadata = read_table(path, repeated=("shard", "sha256"))
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path} has columns {table.schema.names}, expected {SCHEMA.names}")
    names = table["shard"].cast(pa.string()).combine_chunks()
    starts = [0, *(np.flatnonzero(pc.not_equal(names[1:], names[:-1])) + 1).tolist()] if len(names) else []
    shards = [
        ShardFile(
            path=path.parent / names[first].as_py(),
            size=table["size"][first].as_py(),
            sha256=table["sha256"][first].as_py(),
            first=first,
            num=stop - first,
        )
        for first, stop in zip(starts, [*starts[1:], len(names)], strict=True)
    ]
    return Manifest(path, table, shards, metadata)
