"""Three updates of a tiny distillation, whole or as one of two processes.

Run as a program, for a fork of a process whose autograd has worked cannot work: FOLDER RANK, numbers as JSON on stdin.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from dmd.diffusion.denoiser import Denoiser
from dmd.methods import share
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.methods.schedule import update_generator
from dmd.networks import build

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
PHASE = {"matching_scale": 1.0, "regression_scale": 1.0}


def updated(numbers: dict, part: share.Share) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and log of three updates of 7 images and 5 pairs."""
    random = torch.Generator().manual_seed(3)
    parts = []
    for _ in range(3):
        parts.append(Denoiser(build(MLP), sigma_data=0.5))
        for parameter in parts[-1].parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    found = Distillation(parts[0].requires_grad_(False), parts[1], parts[2], numbers, l2_distance, part)
    noise, other, image = torch.randn(7, 2, 1, 1), torch.randn(5, 2, 1, 1), torch.randn(5, 2, 1, 1)
    noise, other, image = (torch.randn(each.shape, generator=random) for each in (noise, other, image))
    label = torch.randint(3, (7,), generator=random)
    for update in range(3):
        given = Batch(noise, label, (other, label[:5], image))
        made, row = found.generator_update(given, PHASE, update_generator("distill", 0, update))
        shared = numbers["shared_noise"]
        row |= found.fake_update(made, label, update_generator("distill", 1, update), has_gradient=shared)
    weights = [parameter.detach().flatten() for part in parts[1:] for parameter in part.parameters()]
    return torch.cat(weights), torch.stack(list(row.values()))


def work(folder: Path, rank: int, numbers: dict) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    share.BUCKET = 100  # values: several buckets
    torch.save(updated(numbers, share.Share(rank, 2, 3)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))
