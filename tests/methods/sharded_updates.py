"""Updates of a tiny distillation, whole or as one of two processes that hold half of the parameters each.

Run as a program, for a fork of a process whose autograd has worked cannot work: FOLDER RANK; numbers and places of
cases as JSON on stdin.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from dmd.diffusion.compute import prepare
from dmd.diffusion.denoiser import Denoiser
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from dmd.methods.state import generator_weights, restore, state
from dmd.networks import build
from dmd.networks.adapters import carried, with_network

UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1, 2], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3}
PHASE = {"matching_scale": 1.0, "regression_scale": 1.0}
ADAPTER = {"rank": 3, "alpha": None, "targets": None}
CASES = [
    {"adapter": None, "shared_noise": False, "gradient_checkpointing": False},
    {"adapter": None, "shared_noise": True, "gradient_checkpointing": True},
    {"adapter": ADAPTER, "shared_noise": False, "gradient_checkpointing": False},
    {"adapter": ADAPTER, "shared_noise": True, "gradient_checkpointing": True},
]


def distillation(numbers: dict, share: Share) -> Distillation:
    random = torch.Generator().manual_seed(3)
    parts = []
    for _ in range(1 if numbers["adapter"] else 3):
        made = Denoiser(build(UNET), sigma_data=0.5)
        for parameter in made.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
        parts.append(prepare(made.eval(), numbers["compute"]))
    if numbers["adapter"]:
        (carrier,) = parts
        adapted = carried(carrier.network, numbers["adapter"], ("generator", "fake"), seed=0)
        parts = [with_network(carrier, part) for part in adapted]
    return Distillation(parts[0].requires_grad_(False), parts[1], parts[2], numbers, l2_distance, share)


def updated(numbers: dict, share: Share) -> dict[str, torch.Tensor]:
    """Weights of the generator, log and grid after updates of 8 images and 6 pairs, restored before the last one."""
    random, rows = torch.Generator().manual_seed(4), []
    noise, other, image = (torch.randn(num, 1, 4, 4, generator=random) for num in (8, 6, 6))
    label, found = torch.randint(3, (8,), generator=random), distillation(numbers, share)
    for update in range(3):
        if update == 2:
            kept = {name: value.clone() for name, value in state(found).items()}
            found = distillation(numbers, share)
            restore(found, kept)
        given = Batch(noise, label, (other, label[:6], image))
        made, row = found.generator_update(given, PHASE, update_generator("distill", 0, update))
        shared = numbers["shared_noise"]
        row |= found.fake_update(made, label, update_generator("distill", 1, update), has_gradient=shared)
        rows += row.values()
    whole = {name: value.detach().clone() for name, value in generator_weights(found).items()}
    whole |= {f"state.{name}": value for name, value in state(found).items()}
    mine = sum(getattr(each, "_local_tensor", each).numel() for each in found.fake.network.parameters())
    return whole | {"log": torch.stack(rows), "grid": found.generate_all(noise, label), "mine": torch.tensor(mine)}


def cases(numbers: dict, places: list[int], **compute) -> list[dict]:
    """Numbers of each chosen case, whose parameters are shared as `compute` says."""
    found = []
    for case in (CASES[place] for place in places):
        given = compute | {"gradient_checkpointing": case["gradient_checkpointing"]}
        found.append(numbers | {"adapter": case["adapter"], "shared_noise": case["shared_noise"], "compute": given})
    return found


def work(folder: Path, rank: int, numbers: dict, places: list[int]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [updated(case, Share(rank, 2, 3)) for case in cases(numbers, places, shard_parameters=True)]
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), int(sys.argv[2]), *json.load(sys.stdin))
