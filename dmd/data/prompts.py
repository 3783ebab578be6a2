"""Files of prompts: one column of text, read a group of rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmd.data.manifest import KEY
from dmd.provenance import files, outside_files

COLUMN = "prompt"
GROUP_SIZE = 10_000  # rows of a file that are in memory at a time
MOST_CHARACTERS = 10_000  # of a prompt; a text encoder reads a few hundred


def write(path: Path, texts: Iterable[pa.Array], metadata: Callable[[], Mapping[str, Any]]) -> int:
    """Writes exactly `path`; the same prompts give the same bytes, however `texts` is split into arrays.

    Args:
        texts: arrays of strings, in order; few prompts are in memory at a time.
        metadata: called after the last of `texts`; the file holds what it returns.

    Returns:
        How many prompts were written.
    """
    schema = pa.schema([pa.field(COLUMN, pa.string())])
    num, waiting = 0, pa.array([], pa.string())
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for array in texts:
            num += len(array)
            waiting = pa.concat_arrays([waiting, array.cast(pa.string())])
            while len(waiting) >= GROUP_SIZE:
                writer.write_table(pa.table([waiting[:GROUP_SIZE]], schema=schema))
                waiting = waiting[GROUP_SIZE:]
        if len(waiting):
            writer.write_table(pa.table([waiting], schema=schema))
        writer.add_key_value_metadata({KEY.decode(): files.canonical_json(metadata())})
    return num


class Prompts:
    """The prompts of a file that a stage of this project wrote, read by rows."""

    def __init__(self, path: Path) -> None:
        """Reads the metadata; ValueError if the file is missing, damaged, or not a file of prompts."""
        self._path = path
        with self._reading():
            self._file = pq.ParquetFile(path)
            metadata, columns = self._file.metadata, self._file.schema_arrow.names
            text = (metadata.metadata or {}).get(KEY)
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if text is None or columns != [COLUMN]:
            raise ValueError(f"{path} holds no prompts that a stage of this project wrote")
        self.metadata: dict[str, Any] = files.json_object(text, path)
        if any(not 0 <= size <= GROUP_SIZE for size in sizes):
            raise ValueError(f"{path} claims {min(sizes)} to {max(sizes)} prompts in a row group: run `make verify`")
        self._ends = np.cumsum(sizes)
        self._group: tuple[int, pa.ChunkedArray] | None = None

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return outside_files.reading(self._path, "prompts", advice=": run `make verify`")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, rows: Iterable[int]) -> list[str]:
        """The prompts of these rows, each 0 .. len - 1; neighbours are read together.

        Raises:
            ValueError: the file cannot be read, or a prompt is blank.
        """
        return [self._row(row) for row in rows]

    def _row(self, row: int) -> str:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if self._group is None or self._group[0] != group:
            with self._reading():
                column = self._file.read_row_group(group)[COLUMN]
            num, claimed = len(column) - column.null_count, self._file.metadata.row_group(group).num_rows
            if num != claimed:
                raise ValueError(f"{self._path} claims {claimed} prompts, but has {num}: run `make verify`")
            self._group = group, column
        column = self._group[1]
        text = str(column[row - int(self._ends[group]) + len(column)].as_py())
        if not text.strip():
            raise ValueError(f"{self._path}: the prompt of row {row} (counted from 0) is blank in its source")
        return text
