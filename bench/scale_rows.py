"""Memory and time with twelve million rows: stage manifest on synthetic blocks, and a `PairReader` on its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import clock
from dmd.data import manifest, shards
from dmd.provenance import files, record

NUM_ROWS = 12_000_000
SHARD_SIZE = 1000  # rows
BLOCK = 10  # shards in a block
MOST_MIB = 953  # target for the peak memory of stage manifest: 1 GB
FACTS = {"shape": [4, 64, 64], "num_classes": 0, "sigma": None, "network_calls": 51, "guidance": 8.0}
OPEN = """
import sys, time, resource
from pathlib import Path
import torch
from dmd.data import manifest
from dmd.data.pairs import PairReader
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
reader = PairReader(manifest.read(Path(sys.argv[1])), seed=0)
opened = time.monotonic()
row = reader._row(0, len(reader))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(reader), opened - begin, time.monotonic() - opened, (after - before) / 1024, after / 1024)
"""


def measure(folder: Path, num: int = NUM_ROWS) -> dict[str, Any]:
    """Seconds and MiB of stage and reader, with tars of a few kilobytes; real tars take longer to hash and read."""
    blocks = write_blocks(folder, num)
    output = folder / "pairs" / "manifest.parquet"
    command = [sys.executable, "-m", "dmd.stages.manifest", "--output", str(output)]
    command += ["--spec", json.dumps({"num": num, "shard_size": SHARD_SIZE}), "--blocks", *map(str, blocks)]
    begin = time.monotonic()
    peak = peak_of(command)
    figures: dict[str, Any] = {"rows": num, "shards": num // SHARD_SIZE, "blocks": len(blocks)}
    figures["manifest"] = {
        "seconds": round(time.monotonic() - begin, 1),
        "peak_mib": peak,
        "bytes": output.stat().st_size,
    }
    figures["manifest"]["imports_alone_peak_mib"] = peak_of([sys.executable, "-c", "import dmd.stages.manifest"])
    answer = subprocess.run([sys.executable, "-c", OPEN, str(output)], capture_output=True, text=True, check=True)
    rows, opened, order, increase, peak_mib = map(float, answer.stdout.split())
    assert rows == num
    figures["reader"] = {"seconds_to_open": round(opened, 2), "seconds_to_shuffle_an_epoch": round(order, 2)}
    figures["reader"] |= {"peak_mib_over_imports": round(increase), "peak_mib": round(peak_mib)}
    return figures | {"targets": {"manifest.peak_mib": clock.target(peak, most=MOST_MIB)}}


def peak_of(command: list[str]) -> int:
    """Peak resident memory of a process in MiB; RuntimeError if it fails."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {command[:4]}")
    return round(usage.ru_maxrss / 1024)


def write_blocks(folder: Path, num: int) -> list[Path]:
    """Writes block files like those of stage pairs; all their shards are hard links to one tiny tar."""
    pairs = folder / "pairs"
    (pairs / "blocks").mkdir(parents=True)
    tiny = folder / "tiny.tar"
    shards.write(tiny, [(0, {"label": np.array(-1)})], {})
    digest, size = files.sha256(tiny), tiny.stat().st_size
    spec = {"shard_size": SHARD_SIZE, "first_seed": 2**31, "solver": {"name": "pndm", "steps": 50}}
    paths = []
    for first in range(0, num // SHARD_SIZE, BLOCK):
        names = [f"{number:05d}.tar" for number in range(first, first + BLOCK)]
        for name in names:
            os.link(tiny, pairs / name)
        path = pairs / "blocks" / f"{first:05d}-{first + BLOCK - 1:05d}.parquet"
        metadata = record.provenance("pairs", {**spec, "first": first, "last": first + BLOCK - 1}, {})
        with record.publish(path, stage="pairs", inputs={}) as temporary:
            manifest.write(temporary, _rows(first, names, size, digest), {**metadata, "facts": FACTS})
        paths.append(path)
    return paths


def _rows(first: int, names: list[str], size: int, digest: str) -> pa.Table:
    index = np.arange(first * SHARD_SIZE, (first + len(names)) * SHARD_SIZE)
    within = np.tile(np.arange(SHARD_SIZE), len(names))
    columns = {
        "key": [f"{number:08d}" for number in index],
        "shard": [f"../{name}" for name in names for _ in range(SHARD_SIZE)],
        "index": index,
        "label": np.arange(len(index)) % 12_000_000,
        "seed": 2**31 + index,
        "offset": 1536 + 219_648 * within,
        "length": np.full(len(index), 219_648),
        "size": np.full(len(index), size),
        "sha256": [digest] * len(index),
    }
    return pa.table(columns, schema=manifest.SCHEMA)
