"""Images per second of stage pairs, relative to bare calls of its network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import clock, setting
from dmd.models import loading
from dmd.models.denoiser import Denoiser
from dmd.provenance import record
from dmd.sampling import drawing_memory


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Speed of the stage as a fraction of the speed of the bare network.

    Each repetition runs the stage for one shard (drawing noise, solving, writing, digest, block file), subtracts the
    time of loading the teacher and planning memory, and calls the bare network as often as the solver does.
    """
    teacher = folder / "teacher" / "denoiser.safetensors"
    setting.write_teacher(teacher)
    denoiser, _ = loading.load_denoiser(teacher)
    assert isinstance(denoiser, Denoiser)
    bare, stage = [], []
    for number in range(repetitions + 1):
        total = clock.cost(partial(_draw, teacher, folder, number))
        stage.append(total - clock.cost(partial(_load, teacher)))
        bare.append(_call(denoiser.network))
    stage, bare = stage[1:], bare[1:]  # the first is warm-up
    return {
        "images_per_second": clock.rates(setting.BATCH_SIZE, stage),
        "network_calls": setting.NUM_CALLS,
        "speed": clock.ratios(bare, stage, least=0.99),
    }


def _draw(teacher: Path, folder: Path, number: int) -> None:
    output = folder / "pairs" / "blocks" / f"{number:05d}-{number:05d}.parquet"
    setting.draw_pairs(teacher, output, first=number, last=number, shard_size=setting.BATCH_SIZE)


def _load(teacher: Path) -> None:
    record.check_inputs(denoiser=teacher)
    denoiser, facts = loading.load_denoiser(teacher)
    drawing_memory.announce_drawing(denoiser, tuple(facts["shape"]), setting.BATCH_SIZE, torch.device("cpu"))


def _call(network: torch.nn.Module) -> clock.Cost:
    image = torch.randn(setting.BATCH_SIZE, 3, setting.RESOLUTION, setting.RESOLUTION)
    condition, label = torch.zeros(setting.BATCH_SIZE), torch.zeros(setting.BATCH_SIZE, dtype=torch.int64)
    with clock.plain_torch(), torch.no_grad():
        start = clock.now()
        for _ in range(setting.NUM_CALLS):
            network(image, condition, label)
        return clock.now() - start
