"""Pairs of ImageNet-64 size per second: our reader, the raw bytes of the tars, and webdataset's loader.

`python -m bench.readers` writes bench/results/readers.json. Each reading is a separate process (`--read`), which reads
all pairs once to warm up and then `EPOCHS` times, timed from its first batch on. Two workers are two processes of
ours (each with half of the batches, as in a distillation), or two workers of webdataset's loader.
Exits 1 if our reader misses its margin.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import clock
from bench.scale import end, machine

RESULTS = Path(__file__).parent / "results" / "readers.json"
NUM_SHARDS, SHARD_SIZE = 4, 500  # shards of the size of experiment imagenet64: 50.7 MB
BATCH_SIZE = 48  # pairs: the share of one of seven GPUs in a batch of 336
EPOCHS, REPETITIONS = 3, 3
# an update of ImageNet-64 is 811 T operations, shared by seven GPUs that sustain 200 T/s each: docs/results.md
PAIRS_NEEDED = 200 / (811 / 7) * BATCH_SIZE  # per second and process
LEAST_MARGIN = 2.0  # by the clock, with one worker


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", nargs=4, metavar=("KIND", "BLOCK", "WORKER", "WORKERS"), help="one reading")
    parsed = parser.parse_args()
    if parsed.read:
        kind, block, worker, workers = parsed.read
        print(json.dumps(read(KINDS[kind], Path(block), int(worker), int(workers))))
        return
    figures: dict[str, Any] = {"machine": machine(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        figures |= measure(Path(folder))
    figures["load_after"] = round(os.getloadavg()[0], 2)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(RESULTS.read_text(), end="")
    end(figures["targets"])


def measure(folder: Path) -> dict[str, Any]:
    """Pairs per second of wall clock and of CPU, medians over alternating readings, and the rate that a step needs."""
    from bench import setting

    teacher, block = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "00000-00003.parquet"
    setting.write_exact_teacher(teacher, resolution=64)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(teacher, block, first=0, last=NUM_SHARDS - 1, shard_size=SHARD_SIZE, solver=solver)
    names = [f"{kind}_{workers}" for kind in KINDS for workers in (1, 2)]
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(REPETITIONS):
        for name in names:
            kind, workers = name.rsplit("_", 1)
            parts = start_readers(kind, block, int(workers))
            total = sum(part["pairs"] for part in parts)
            wall[name].append(total / max(part["wall"] for part in parts))
            cpu[name].append(total / sum(part["cpu"] for part in parts))
    rates = {
        name: {
            "per_second": round(statistics.median(wall[name])),
            "per_cpu_second": round(statistics.median(cpu[name])),
        }
        for name in names
    }
    margin = rates["ours_1"]["per_second"] / PAIRS_NEEDED
    return {
        "repetitions": REPETITIONS,
        "pairs": rates,
        "needed_per_second_and_process": round(PAIRS_NEEDED),
        "margin": round(margin, 1),
        "margin_cpu": round(rates["ours_1"]["per_cpu_second"] / PAIRS_NEEDED, 1),
        "targets": {"margin": clock.target(margin, least=LEAST_MARGIN)},
        "ours_over_webdataset_cpu": round(
            rates["ours_1"]["per_cpu_second"] / rates["webdataset_1"]["per_cpu_second"], 2
        ),
        "ours_over_bytes_cpu": round(rates["ours_1"]["per_cpu_second"] / rates["bytes_1"]["per_cpu_second"], 2),
    }


def start_readers(kind: str, block: Path, workers: int) -> list[dict[str, float]]:
    """Runs the processes of one reading and returns their figures; webdataset starts its workers itself."""
    num = 1 if kind == "webdataset" else workers
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = [
        [sys.executable, "-m", "bench.readers", "--read", kind, str(block), str(worker), str(workers)]
        for worker in range(num)
    ]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) for line in lines]
    answers = [process.communicate()[0] for process in processes]
    return [json.loads(answer) for answer in answers]


def read(
    pairs: Callable[[Path, int, int, int], Iterator[int]], block: Path, worker: int, workers: int
) -> dict[str, float]:
    """Pairs, wall and CPU seconds of `EPOCHS` epochs after one of warm-up; CPU time includes that of workers."""
    import torch

    torch.set_num_threads(1)
    for _ in pairs(block, worker, workers, 1):
        pass
    before, batches = _cpu(), pairs(block, worker, workers, EPOCHS)
    first, begin = next(batches), time.monotonic()
    num = sum(batches)
    return {"pairs": num, "wall": time.monotonic() - begin, "cpu": (_cpu() - before) * num / (num + first)}


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _ours(block: Path, worker: int, workers: int, epochs: int) -> Iterator[int]:
    """Batches in shuffled order from a `PairReader`; each worker reads its part."""
    from dmd.data import manifest
    from dmd.data.pairs import PairReader

    reader = PairReader(manifest.read(block), seed=0)
    end = epochs * len(reader)
    for position in range(worker * BATCH_SIZE, end, workers * BATCH_SIZE):
        noise, _, image = reader.batch(position, min(BATCH_SIZE, end - position))
        assert noise.shape == image.shape
        yield len(image)


def _bytes(block: Path, worker: int, workers: int, epochs: int) -> Iterator[int]:
    """The raw bytes of the tars into one buffer, an upper bound for readers."""
    buffer = bytearray(1 << 20)
    for number in [*range(worker, NUM_SHARDS, workers)] * epochs:
        with open(block.parent.parent / f"{number:05d}.tar", "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
        yield SHARD_SIZE


def _webdataset(block: Path, worker: int, workers: int, epochs: int) -> Iterator[int]:
    """Shards shuffled, a shuffle buffer of 1,000, decoded and batched by workers of webdataset's loader."""
    import webdataset

    urls = [str(block.parent.parent / f"{number:05d}.tar") for number in range(NUM_SHARDS)]
    data = webdataset.WebDataset(urls, shardshuffle=NUM_SHARDS).shuffle(1000).decode()
    data = data.to_tuple("noise.npy", "label.npy", "image.npy").batched(BATCH_SIZE).repeat(epochs)
    for noise, _, image in webdataset.WebLoader(data, batch_size=None, num_workers=workers):
        assert noise.shape == image.shape
        yield len(image)


KINDS: dict[str, Callable[[Path, int, int, int], Iterator[int]]] = {
    "ours": _ours,
    "bytes": _bytes,
    "webdataset": _webdataset,
}

if __name__ == "__main__":
    main()
