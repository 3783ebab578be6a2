"""A tiny distillation that is measured before and after two updates, whole or as one of several processes.

Run as a program: FOLDER RANK PROCESSES, section as JSON on stdin.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dmd.config.training import Monitor as Config
from dmd.methods.base import Facts
from dmd.metrics.features import Pixels
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.sampling.noise import seeded_noise
from dmd.train.image_measures import ImageMeasures
from dmd.train.monitor import Monitor, conditions
from dmd.train.parallel import BatchSplit
from tests.train.parallel_updates import MLP, ROLES, rows
from tests.trainings import FixedRows, Updates, changed

CONFIG = Config(every=1, num_images=15, seeds=5)
FACTS = Facts((2, 1, 1), 3, 0.5)


@dataclass
class OneCall:
    """A teacher's images by one call."""

    teacher: nn.Module
    sigma: float = 80.0

    def __call__(self, seeds: Sequence[int], label: Tensor) -> Iterator[tuple[Tensor, int]]:
        for seed, each in zip(seeds, label, strict=True):
            noise, _ = seeded_noise([seed], FACTS.shape, num_classes=0)
            with torch.no_grad():
                yield self.teacher(self.sigma * noise, torch.tensor([self.sigma]), each[None]), 1


def started(section: dict, split: BatchSplit, config: Config = CONFIG, sigma: float = 80.0) -> tuple[Updates, Monitor]:
    """A training of three updates, and its monitor; the teacher starts at `sigma`."""
    random = torch.Generator().manual_seed(3)
    modules: dict[str, Any] = {}
    for role in ROLES:
        modules[role] = Denoiser(build(MLP), sigma_data=0.5)
        for parameter in modules[role].parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    sizes = {"matching_batch_size": 7, "regression_batch_size": 5, "phases": [{"updates": 3, "fake_updates": 2}]}
    streams = {name: FixedRows(each) for name, each in rows(random).items()}
    found = Updates(changed(section, **sizes), modules, FACTS, streams, split)
    calls = found.trainer.method.sampling()
    assert calls is not None
    measures = ImageMeasures(torch.device("cpu"), Pixels(8))
    chosen = conditions(config, FACTS.num_classes, None, 0)
    images: Any = OneCall(modules["teacher"], sigma)
    monitor = Monitor(config, found.trainer, chosen, measures, images, calls)
    monitor.count_passes()
    monitor.start(3, training_passes=10**5)
    return found, monitor


def measured(section: dict, split: BatchSplit) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Columns before and after two updates, and what a checkpoint would hold."""
    found, monitor = started(section, split)
    columns = [monitor.measure(0)]
    for update in range(2):
        found.update(update)
        columns.append(monitor.measure(update + 1))
    return columns, monitor.state()


def work(folder: Path, rank: int, num: int, section: dict) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num)
    torch.save(measured(section, BatchSplit(rank, num, 4)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.load(sys.stdin))
