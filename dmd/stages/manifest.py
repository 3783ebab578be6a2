"""Stage manifest: one table of all blocks; checks the digests of local shards, and the sizes of those in storage."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmd.data import columns, manifest, stored_blocks
from dmd.data.storage import LOCAL, Settings
from dmd.jobs import job, reporting
from dmd.provenance import record


def run(*, blocks: list[Path], output: Path, num: int, shard_size: int, storage: Settings | None = None) -> None:
    """Writes manifest.parquet.

    Args:
        blocks: block files of pairs or samples, in order.
        output: manifest.parquet; it lists shards relative to its folder, so blocks may belong to another experiment.
        num: number of items to list; blocks may hold more.
        shard_size: items in each shard.
        storage: object storage with the shards that are not on this disk; the table is copied to it.

    Raises:
        ValueError: blocks of different specs, a gap in the numbering, or a shard that differs from its digest.
    """
    inputs = record.check_inputs(blocks=blocks)
    with record.writing(output):
        tables = [manifest.read(path) for path in blocks]
        _check_origins(tables)
        store = stored_blocks.connect(storage)
        remote = [file for block in tables for file in block.shards if store and not file.path.is_file()]
        held = sum(len(block) for block in tables)
        if held < num:
            raise ValueError(f"the blocks hold {held} items, but num is {num}")
        if num % shard_size:
            raise ValueError(f"num {num} must be a multiple of shard_size {shard_size}")
        if store:
            stored_blocks.check_sizes(store, remote)
        facts = manifest.total_facts([block.metadata["facts"] for block in tables])
        spec = {"num": num, "shard_size": shard_size}
        metadata = {**record.provenance("manifest", spec, inputs), "facts": facts}
        with record.publish(output, stage="manifest", inputs=inputs) as temporary:
            parts = _parts(tables, output.parent, num, {file.path for file in remote})
            manifest.write_parts(temporary, parts, metadata)
        if store and store.writable:
            store.upload(output)


def _check_origins(blocks: Sequence[manifest.Manifest]) -> None:
    """ValueError unless all blocks have the same inputs and spec."""
    for block in blocks:
        if _origin(block) != _origin(blocks[0]):
            raise ValueError(f"{block.path} and {blocks[0].path} differ in inputs or spec: run snakemake again")


def _origin(block: manifest.Manifest) -> dict[str, Any]:
    facts, spec = block.metadata["facts"], block.metadata["spec"]
    return {
        **{key: block.metadata[key] for key in ("stage", "version", "inputs")},
        "facts": {key: value for key, value in facts.items() if key not in manifest.COUNTS},
        "spec": {key: value for key, value in spec.items() if key not in manifest.RANGE_KEYS},
    }


def _parts(blocks: Sequence[manifest.Manifest], folder: Path, num: int, remote: set[Path]) -> Iterator[pa.Table]:
    """The first `num` rows of all blocks, block by block; shards that are not `remote` are checked first."""
    status, done = reporting.Progress(total=sum(len(block) for block in blocks), unit="items"), 0
    for block in blocks:
        for file in block.shards:
            if file.path not in remote:
                LOCAL.verify(file)
            status.add(file.num)
        part = _with_paths(manifest.read(block.path), folder).slice(0, num - done)  # read again: saves memory
        if not np.array_equal(np.from_dlpack(part["index"].combine_chunks()), np.arange(done, done + len(part))):
            raise ValueError("the blocks do not number their items 0, 1, 2, ... in order")
        done += len(part)
        yield part


def _with_paths(block: manifest.Manifest, folder: Path) -> pa.Table:
    """The block's rows with shard paths relative to `folder`."""
    paths = columns.texts([os.path.relpath(file.path, folder) for file in block.shards])
    shards = np.repeat(np.arange(len(block.shards)), [file.num for file in block.shards])
    column = block.table.schema.get_field_index("shard")
    return block.table.set_column(column, manifest.SCHEMA.field("shard"), paths.take(columns.numbers(shards)))


if __name__ == "__main__":
    job.main(run)
