"""Helper stage manifest: one table over all blocks, after every shard was compared with its digest."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmd.artifacts import manifest, record
from dmd.artifacts.shards import Shard
from dmd.stages import stage
from dmd.stages.drawing import COUNTED, PLACE_KEYS, total_facts


def run(*, blocks: list[Path], output: Path, num: int, shard_size: int) -> None:
    """Writes manifest.parquet.

    Args:
        blocks: block files of pairs or samples, in order.
        output: manifest.parquet; the paths in it are relative to its folder, so blocks may be another experiment's.
        num: items to list; blocks may hold more.
        shard_size: items in each shard.

    Raises:
        ValueError: blocks of different specs, a gap in the numbering, or a shard that differs from its digest.
    """
    inputs = record.check_inputs(blocks=blocks)
    with record.exclusive(output):
        tables, origins, facts = [], [], []
        status = stage.Progress(total=num, unit="items")
        for path in blocks:
            block = manifest.read(path)
            for file in block.shards:
                with Shard(file.path, size=file.size, sha256=file.sha256):
                    status.add(file.num)
            facts.append(block.metadata["facts"])
            origins.append({key: block.metadata[key] for key in ("stage", "version", "inputs")})
            origins[-1]["facts"] = {key: value for key, value in facts[-1].items() if key not in COUNTED}
            spec = block.metadata["spec"]
            origins[-1]["spec"] = {key: value for key, value in spec.items() if key not in PLACE_KEYS}
            tables.append(_moved(block, output.parent))
        for path, origin in zip(blocks, origins, strict=True):
            if origin != origins[0]:
                raise ValueError(f"{path} and {blocks[0]} differ in inputs or spec: run snakemake again")
        table = pa.concat_tables(tables).slice(0, num)
        _check_numbering(table, num, shard_size)
        spec = {"num": num, "shard_size": shard_size}
        metadata = {**record.provenance("manifest", spec, inputs), "facts": total_facts(facts)}
        with record.publish(output, stage="manifest", inputs=inputs) as temporary:
            manifest.write(temporary, table, metadata)


def _moved(block: manifest.Manifest, folder: Path) -> pa.Table:
    """The block's rows with shard paths relative to `folder`."""
    paths = [os.path.relpath(file.path, folder) for file in block.shards for _ in range(file.num)]
    place = block.table.schema.get_field_index("shard")
    return block.table.set_column(place, manifest.SCHEMA.field("shard"), pa.array(paths, pa.string()))


def _check_numbering(table: pa.Table, num: int, shard_size: int) -> None:
    if len(table) != num:
        raise ValueError(f"the blocks hold {len(table)} items, {num} were asked for")
    if num % shard_size:
        raise ValueError(f"num {num} must be a multiple of shard_size {shard_size}")
    if not pc.all(pc.equal(table["index"], pa.array(np.arange(num)))).as_py():
        raise ValueError("the blocks do not number their items 0, 1, 2, ... in order")


if __name__ == "__main__":
    stage.main(run)
