"""Pairs per second that one core writes to shards and reads from them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import clock, setting
from dmd.data import manifest, shards
from dmd.data.pairs import PairReader
from dmd.provenance import record

RESOLUTION = 64  # pixels, 3 channels
SHARD_SIZE = 256
NUM_SHARDS = 2
NUM = SHARD_SIZE * NUM_SHARDS

Items = list[tuple[int, shards.Item]]


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Pairs (noise, label, image) per second: written, published (written with digest, record and fsync), and read.

    Pairs are read in random order; the first reading includes the check of the shards' digests.
    """
    teacher, block = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "pairs.parquet"
    setting.write_exact_teacher(teacher, resolution=RESOLUTION)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(teacher, block, first=0, last=NUM_SHARDS - 1, shard_size=SHARD_SIZE, solver=solver)
    table = manifest.read(block)
    items = [
        [(index, {name: np.array(array) for name, array in fields.items()}) for index, fields in shards.read(file.path)]
        for file in table.shards
    ]
    written: list[clock.Cost] = []
    published: list[clock.Cost] = []
    read, read_again = [], []
    for number in range(repetitions + 1):
        for costs, work in ((written, _write), (published, _publish)):
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                costs.append(clock.cost(partial(work, Path(fresh), items)))
        reader = PairReader(table, seed=number)
        read.append(clock.cost(partial(_read, reader, 0)))
        read_again.append(clock.cost(partial(_read, reader, NUM)))
    return {
        "written_per_second": clock.rates(NUM, written[1:], least=4000),
        "published_per_second": clock.rates(NUM, published[1:]),
        "read_per_second": clock.rates(NUM, read[1:], least=3800),
        "read_again_per_second": clock.rates(NUM, read_again[1:]),
    }


def _write(folder: Path, items: Sequence[Items]) -> None:
    for number, chosen in enumerate(items):
        shards.write(folder / f"{number:05d}.tar", chosen, {"shard": number})


def _publish(folder: Path, items: Sequence[Items]) -> None:
    for number, chosen in enumerate(items):
        with record.publish(folder / f"{number:05d}.tar", stage="pairs", inputs={}) as temporary:
            shards.write(temporary, chosen, {"shard": number})


def _read(reader: PairReader, position: int) -> None:
    for start in range(position, position + NUM, setting.BATCH_SIZE):
        reader.batch(start, setting.BATCH_SIZE)
