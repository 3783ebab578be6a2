"""One update of stage distill against the sum of its network passes and optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench import clock, setting, updates
from dmd.jobs import torch_setup
from dmd.models import loading
from dmd.models.compute import Compute
from dmd.models.denoiser import Denoiser

NUM_PAIRS = 256
SWITCHES: dict[str, Compute] = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bfloat16": {"dtype": "bfloat16"},
    "compile": {"compile": True},
    "bfloat16_compile": {"dtype": "bfloat16", "compile": True},
}
FAKE_FORWARD = "fake forward"  # not needed with shared_noise


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Time of an update divided by the time of its bare passes, without and with `shared_noise`.

    An update does what it does in the stage: read data, draw noise, both losses and optimisers, average, log row.
    """
    teacher, manifest = inputs(folder)
    own, shared = (_updates(teacher, manifest, shared_noise=shared) for shared in (False, True))
    passes = Passes(teacher)
    steps, shared_steps, parts = [], [], []
    for _ in range(repetitions + 1):
        steps.append(clock.cost(own.next))
        parts.append(passes.costs())
        shared_steps.append(clock.cost(shared.next))
    steps, shared_steps, parts = steps[1:], shared_steps[1:], parts[1:]  # the first is warm-up
    sums = [sum(part.values(), clock.Cost(0.0, 0.0)) for part in parts]
    shared_sums = [total - part[FAKE_FORWARD] for total, part in zip(sums, parts, strict=True)]
    return {
        "over_passes": clock.ratios(steps, sums, most=1.03),
        "shared_noise_over_own_passes": clock.ratios(shared_steps, shared_sums, most=1.03),
        "shared_noise_over_passes": clock.ratios(shared_steps, sums),
        "seconds": {"cpu": clock.spread([step.cpu for step in steps])},
        "shares_of_passes": {
            name: clock.spread([part[name].cpu / total.cpu for part, total in zip(parts, sums, strict=True)])["median"]
            for name in parts[0]
        },
    }


def measure_compute(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Time of an update with each setting of section `compute`, divided by the time of its bare float32 passes.

    The first update with each setting, which may compile, is not counted.
    """
    teacher, manifest = inputs(folder)
    passes = Passes(teacher)
    by_switch = {
        name: _updates(teacher, manifest, shared_noise=False, compute=compute) for name, compute in SWITCHES.items()
    }
    sums: list[clock.Cost] = []
    steps: dict[str, list[clock.Cost]] = {name: [] for name in by_switch}
    for repetition in range(repetitions + 1):
        sums.append(sum(passes.costs().values(), clock.Cost(0.0, 0.0)))
        for name, updates_of_one in by_switch.items():
            steps[name].append(clock.cost(updates_of_one.next))
            print(f"compute  {name}, update {repetition}: {steps[name][-1].cpu:.3g} s of CPU", flush=True)
    return {f"{name}_over_float32_passes": clock.ratios(costs[1:], sums[1:]) for name, costs in steps.items()}


def inputs(folder: Path) -> tuple[Path, Path]:
    """A teacher with random weights, and a block file of its pairs, which can be read like a manifest."""
    torch_setup.set_threads(setting.THREADS)
    teacher, manifest = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "pairs.parquet"
    setting.write_teacher(teacher)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    last = NUM_PAIRS // setting.BATCH_SIZE - 1
    setting.draw_pairs(teacher, manifest, first=0, last=last, shard_size=setting.BATCH_SIZE, solver=solver)
    return teacher, manifest


def _updates(teacher: Path, manifest: Path, *, shared_noise: bool, compute: Compute | None = None) -> updates.Updates:
    section = setting.distill(shared_noise=shared_noise, compute=compute)
    return updates.from_files(teacher, manifest, section)


class Passes:
    """Three networks with the same weights, called without the stage's other work but as often as in one update."""

    def __init__(self, teacher: Path) -> None:
        self._teacher, self._generator, self._fake = (_network(teacher) for _ in range(3))
        section = setting.distill(shared_noise=False)
        self._clip = section.optimisers["student"].gradient_clip
        self._average = AveragedModel(self._generator, multi_avg_fn=get_ema_multi_avg_fn(section.ema_decay))
        self._optimisers = [
            torch.optim.AdamW(network.requires_grad_(True).parameters(), lr=1.0e-6, fused=True)
            for network in (self._generator, self._fake)
        ]
        self._image = torch.randn(setting.BATCH_SIZE, 3, setting.RESOLUTION, setting.RESOLUTION)
        self._gradient = torch.randn_like(self._image) / self._image.numel()
        self._condition = torch.zeros(setting.BATCH_SIZE)
        self._label = torch.zeros(setting.BATCH_SIZE, dtype=torch.int64)

    def costs(self) -> dict[str, clock.Cost]:
        """Time of each part of one update, by name."""
        with clock.plain_torch():
            return {
                "generator forward and backward, matching": clock.cost(lambda: self._train(self._generator)),
                "teacher forward": clock.cost(lambda: self._call(self._teacher)),
                FAKE_FORWARD: clock.cost(lambda: self._call(self._fake)),
                "generator forward and backward, regression": clock.cost(lambda: self._train(self._generator)),
                "fake forward and backward": clock.cost(lambda: self._train(self._fake)),
                "optimisers, clipping and moving average": clock.cost(self._step),
            }

    def one_of_each(self) -> dict[str, clock.Cost]:
        """Time of a forward pass, of one with its backward pass, and of the optimiser steps of both networks."""
        with clock.plain_torch():
            return {
                "forward": clock.cost(lambda: self._call(self._teacher)),
                "trained": clock.cost(lambda: self._train(self._generator)),
                "optimisers": clock.cost(self._step),
            }

    def _train(self, network: torch.nn.Module) -> None:
        network(self._image, self._condition, self._label).backward(self._gradient)

    @torch.no_grad()
    def _call(self, network: torch.nn.Module) -> None:
        network(self._image, self._condition, self._label)

    def _step(self) -> None:
        for network, optimiser in zip((self._generator, self._fake), self._optimisers, strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), self._clip)
            optimiser.step()
            optimiser.zero_grad()
        self._average.update_parameters(self._generator)


def _network(teacher: Path) -> torch.nn.Module:
    denoiser, _ = loading.load_denoiser(teacher)
    assert isinstance(denoiser, Denoiser)
    return denoiser.network
