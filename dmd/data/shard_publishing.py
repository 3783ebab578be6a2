"""Writes and publishes a whole shard, and makes its rows of a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmd.data import manifest, shards
from dmd.provenance import record


def publish(
    path: Path,
    items: Iterable[tuple[int, shards.Item]],
    *,
    name: str,
    number: int,
    provenance: Mapping[str, Any],
    inputs: record.Inputs,
) -> tuple[str, pa.Table]:
    """Writes a shard with its record; returns its digest and its rows.

    Args:
        items: index and fields of each item; one item is in memory at a time.
        name: path of the shard relative to the folder of the manifest.
        number: number of the shard.
        provenance: provenance of the stage that makes it.
        inputs: inputs of that stage.
    """
    with record.publish(path, stage=provenance["stage"], inputs=inputs) as temporary:
        shards.write(temporary, items, {"origin": provenance, "shard": number, "facts": {}})
    digest, size = record.check(path), path.stat().st_size
    with shards.Shard(path) as shard:
        return digest, manifest.rows_of(shard, name, size=size, sha256=digest, first_seed=None)
