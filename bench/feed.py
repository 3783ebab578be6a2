"""Seconds that an update waits for its batch if it is made on demand, by one of eight processes, or prefetched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import clock, setting
from dmd.data import manifest
from dmd.data.pairs import PairReader
from dmd.methods.base import Facts
from dmd.methods.parts.distances import l2_distance
from dmd.models import loading
from dmd.train.data import BatchLoader, NoiseStream, PairStream, Stream
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import assemble, loader, plan

RESOLUTION = 64  # pixels, 3 channels: three quarters of the values of a Stable Diffusion latent
BATCH_SIZE = 512  # of the matching and of the regression loss
PROCESSES = 8
NETWORK = {"kind": "mlp", "channels": 3, "resolution": RESOLUTION, "width": 2, "layers": 1, "num_classes": 0}


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Seconds until a batch is ready; the CPU sleeps meanwhile, as if a GPU were working."""
    teacher, block = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "pairs.parquet"
    setting.write_exact_teacher(teacher, resolution=RESOLUTION)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(teacher, block, first=0, last=1, shard_size=BATCH_SIZE, solver=solver)
    on_demand, eighth, prefetched = (
        _loader(block, split) for split in (BatchSplit(), BatchSplit(0, PROCESSES), BatchSplit())
    )
    seconds: dict[str, list[float]] = {"when_asked": [], "by_one_of_eight_processes": [], "read_ahead": []}
    for update in range(repetitions + 1):
        seconds["when_asked"].append(_wait(on_demand, 2 * update))  # skips updates, so none is prefetched
        seconds["by_one_of_eight_processes"].append(_wait(eighth, 2 * update))
        time.sleep(2 * seconds["when_asked"][-1])  # until the threads are done
        seconds["read_ahead"].append(_wait(prefetched, update))
        time.sleep(2 * seconds["when_asked"][-1])
    return {f"seconds_{name}": clock.spread(values[1:]) for name, values in seconds.items()}


def _loader(block: Path, split: BatchSplit) -> BatchLoader:
    """The loader of a training whose networks are never called."""
    section = setting.distill(shared_noise=False, batch_size=BATCH_SIZE)
    facts = Facts((3, RESOLUTION, RESOLUTION), 0, 0.5)
    modules = {role: loading.new_denoiser(NETWORK, sigma_data=0.5) for role in section.method.roles()}
    trainer = assemble(section, modules, facts, distances={"none": l2_distance}, split=split, start=False)
    streams: dict[str, Stream] = {
        "noise": NoiseStream(facts),
        "pairs": PairStream(PairReader(manifest.read(block), seed=0)),
    }
    return loader(trainer, streams, plan(section.method)[0], stage="distill")


def _wait(batches: BatchLoader, update: int) -> float:
    begin = time.monotonic()
    batches.take(update)
    return time.monotonic() - begin
