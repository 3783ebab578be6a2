"""How long an update waits for its batch: prepared when it is asked for, by one of eight processes, and read ahead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import clock, setting
from dmd.artifacts import manifest
from dmd.artifacts.pairs import PairReader
from dmd.methods.numbers import Numbers
from dmd.methods.phases import plan
from dmd.methods.share import Share
from dmd.stages.feed import Feed

RESOLUTION = 64  # pixels, 3 channels: three quarters of a latent of Stable Diffusion
BATCH_SIZE = 512  # of the matching and of the regression loss
PROCESSES = 8


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Seconds until a batch is there; the networks are an idle wait, as those of a GPU are to the CPU."""
    teacher, block = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "pairs.parquet"
    setting.write_exact_teacher(teacher, resolution=RESOLUTION)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(teacher, block, first=0, last=1, shard_size=BATCH_SIZE, solver=solver)
    asked, eighth, ahead = _feed(block, Share()), _feed(block, Share(0, PROCESSES)), _feed(block, Share())
    found: dict[str, list[float]] = {"when_asked": [], "by_one_of_eight_processes": [], "read_ahead": []}
    for update in range(repetitions + 1):
        found["when_asked"].append(_waited(asked, 2 * update))  # each second one: nothing was prepared
        found["by_one_of_eight_processes"].append(_waited(eighth, 2 * update))
        time.sleep(2 * found["when_asked"][-1])  # until threads are done
        found["read_ahead"].append(_waited(ahead, update))
        time.sleep(2 * found["when_asked"][-1])
    return {f"seconds_{name}": clock.spread(values[1:]) for name, values in found.items()}


def _feed(block: Path, share: Share) -> Feed:
    numbers: Numbers = setting.distill_numbers(shared_noise=False)
    numbers |= {"matching_batch_size": BATCH_SIZE, "regression_batch_size": BATCH_SIZE}
    facts = {"shape": (3, RESOLUTION, RESOLUTION), "num_classes": 0}
    return Feed(PairReader(manifest.read(block), seed=0), plan(numbers)[0], numbers, share, facts=facts)


def _waited(feed: Feed, update: int) -> float:
    begin = time.monotonic()
    feed.take(update)
    return time.monotonic() - begin
