"""Three updates of a tiny distillation, whole or as one of two processes.

Run as a program, for a fork of a process whose autograd has worked cannot work: FOLDER RANK, sections as JSON on stdin.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from dmd.methods.base import Facts, Rows
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.train import parallel
from dmd.train.parallel import BatchSplit
from tests.trainings import FixedRows, Updates, changed, weights

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
ROLES = ("teacher", "student", "fake")


def rows(random: torch.Generator) -> dict[str, Rows]:
    """7 images and 5 pairs."""
    noise, other, image = (torch.randn(num, 2, 1, 1, generator=random) for num in (7, 5, 5))
    label = torch.randint(3, (7,), generator=random)
    return {"noise": {"noise": noise, "label": label}, "pairs": {"noise": other, "label": label[:5], "image": image}}


def updated(section: dict, split: BatchSplit) -> tuple[torch.Tensor, dict[str, float]]:
    """Weights after three updates, and the log of the last."""
    random = torch.Generator().manual_seed(3)
    modules = {}
    for role in ROLES:
        modules[role] = Denoiser(build(MLP), sigma_data=0.5)
        for parameter in modules[role].parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    sizes = {"matching_batch_size": 7, "regression_batch_size": 5, "phases": [{"updates": 3, "fake_updates": 2}]}
    streams = {name: FixedRows(each) for name, each in rows(random).items()}
    found = Updates(changed(section, **sizes), modules, Facts((2, 1, 1), 3, 0.5), streams, split)
    log = [found.update(update) for update in range(3)]
    return torch.cat([weights(modules[role]) for role in ROLES[1:]]), log[-1]


def work(folder: Path, rank: int, sections: list[dict]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    parallel.BUCKET = 100  # values: several buckets
    torch.save([updated(section, BatchSplit(rank, 2, 3)) for section in sections], folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))
