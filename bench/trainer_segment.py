"""One segment of `bench.trainers`, run in the measured tree: prints its figures as JSON.

python trainer_segment.py TREE FOLDER CASE NUM, with TREE of `bench.trainers.TREES`. Modules are imported by name at run
time, since the two trees have different ones.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 2  # updates, or shards
BATCH_SIZE = 64  # images
NUM_SHARDS = 4  # shards of `BATCH_SIZE` pairs that updates read
THREADS = {"first": "dmd.stages.stage", "this": "dmd.jobs.torch_setup"}  # modules with `set_threads`
DIGITS: dict[str, Any] = {"kind": "ddpmpp", "resolution": 8, "channels": 3, "width": 16, "multipliers": [1, 2]}
DIGITS |= {"blocks": 1, "attention": [4], "num_classes": 10}


def main(tree: str, folder: Path, case: str, num: int) -> None:
    """Prints CPU and wall-clock seconds per update or shard, averaged over `num`, and the process's peak memory."""
    sys.path[0] = str(Path.cwd())  # the measured tree, instead of the folder of this file
    setting, threads = (importlib.import_module(name) for name in ("bench.setting", THREADS[tree]))
    threads.set_threads(1)
    network, _, kind = case.partition(" ")
    inputs = folder / tree / network
    teacher, manifest = inputs / "teacher" / "denoiser.safetensors", inputs / "pairs" / "blocks" / "pairs.parquet"
    if not manifest.exists():
        setting.write_teacher(teacher, DIGITS if network == "digits" else setting.NETWORK)
        euler = {**setting.SOLVER, "name": "euler", "steps": 1}
        setting.draw_pairs(teacher, manifest, first=0, last=NUM_SHARDS - 1, shard_size=BATCH_SIZE, solver=euler)
    if num == 0:
        return
    if kind == "pairs":
        work = _pairs(setting, teacher, inputs)
    else:
        work = {"first": _first_updates, "this": _updates}[tree](teacher, manifest, kind == "shared_noise")
    for _ in range(WARM_UP):
        work()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(num):
        work()
    cpu, wall = (time.process_time() - cpu) / num, (time.perf_counter() - wall) / num
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": cpu, "wall": wall, "peak_rss_mib": peak}), flush=True)


def _updates(teacher: Path, manifest: Path, shared_noise: bool) -> Callable[[], object]:
    """Updates of this version."""
    setting, updates = (importlib.import_module(f"bench.{name}") for name in ("setting", "updates"))
    next_update: Callable[[], object] = updates.from_files(
        teacher, manifest, setting.distill(shared_noise=shared_noise)
    ).next
    return next_update


def _first_updates(teacher: Path, manifest: Path, shared_noise: bool) -> Callable[[], object]:
    """Updates of the earlier version, commit 29f82d6."""
    training, phases, checkpoints = (
        importlib.import_module(f"dmd.{name}") for name in ("stages.training", "methods.phases", "stages.checkpoints")
    )
    files = importlib.import_module("dmd.stages.distance").DistanceFiles()
    numbers = importlib.import_module("bench.setting").distill_numbers(shared_noise=shared_noise)
    found = training.Training(teacher, manifest, teacher, files, manifest.parent, numbers)
    (phase,), _ = phases.plan(numbers)
    rows: list[dict[str, float]] = []

    def update() -> None:
        row = found.update(len(rows), phase, phase.updates)
        checkpoints.check_finite(row, len(rows), found.checkpoints)
        rows.append({"update": len(rows), "phase": 0, **row})

    return update


def _pairs(setting: Any, teacher: Path, folder: Path) -> Callable[[], object]:
    """Stage pairs, shard after shard, in a new folder."""
    fresh = folder / f"pairs-{time.time_ns()}" / "blocks"
    numbers = iter(range(10**5))

    def draw() -> None:
        number = next(numbers)
        output = fresh / f"{number:05d}-{number:05d}.parquet"
        setting.draw_pairs(teacher, output, first=number, last=number, shard_size=BATCH_SIZE)

    return draw


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
