"""Updates of a tiny distillation, whole or as one of two processes that hold half of the parameters each.

Run as a program, for a fork of a process whose autograd has worked cannot work: FOLDER RANK; section and places of
cases as JSON on stdin.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from dmd.methods.base import Facts, Method, Rows
from dmd.methods.tdm import Tdm
from dmd.models.adapters import add_adapters, with_network
from dmd.models.compute import prepare
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.train import state
from dmd.train.parallel import BatchSplit
from tests.trainings import FixedRows, Updates, changed

UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1, 2], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3}
ADAPTER = {"rank": 3, "alpha": None, "targets": None}
DMD = {"matching_batch_size": 8, "regression_batch_size": 6, "phases": [{"updates": 3}]}
TDM = {"name": "tdm", "calls": 3, "batch_size": 8, "phases": [{"updates": 3, "fake_updates": 2}]}
CASES = [
    {"adapter": None, "gradient_checkpointing": False, **DMD},
    {"adapter": None, "gradient_checkpointing": True, "shared_noise": True, **DMD},
    {"adapter": ADAPTER, "gradient_checkpointing": False, **DMD},
    {"adapter": ADAPTER, "gradient_checkpointing": True, "shared_noise": True, **DMD},
    {"adapter": None, "gradient_checkpointing": True, "method": TDM},
    {"adapter": ADAPTER, "gradient_checkpointing": True, "method": TDM},
]
ROLES = ("teacher", "student", "fake")


def distillation(section: dict, split: BatchSplit) -> Updates:
    random = torch.Generator().manual_seed(3)
    parts, compute = [], {"gradient_checkpointing": section["compute"]["gradient_checkpointing"]}
    for _ in range(1 if section["adapter"] else 3):
        made = Denoiser(build(UNET), sigma_data=0.5)
        for parameter in made.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
        parts.append(prepare(made.eval(), compute))
    if section["adapter"]:
        (carrier,) = parts
        adapted = add_adapters(carrier.network, section["adapter"], ROLES[1:], seed=0)
        parts = [with_network(carrier, part) for part in adapted]
    random = torch.Generator().manual_seed(4)
    noise, other, image = (torch.randn(num, 1, 4, 4, generator=random) for num in (8, 6, 6))
    label = torch.randint(3, (8,), generator=random)
    rows = {"noise": {"noise": noise, "label": label}, "pairs": {"noise": other, "label": label[:6], "image": image}}
    streams = {name: FixedRows(each) for name, each in rows.items()}
    modules = dict(zip(ROLES, parts, strict=True))
    return Updates(section, modules, Facts((1, 4, 4), 3, 0.5), streams, split)


def updated(section: dict, split: BatchSplit) -> dict[str, torch.Tensor]:
    """Weights of the student, log and images after updates of 8 images and 6 pairs, restored before the last one."""
    found, rows = distillation(section, split), []
    for update in range(3):
        if update == 2:
            kept = {name: value.clone() for name, value in state.state(found.trainer).items()}
            found = distillation(section, split)
            state.restore(found.trainer, kept)
        rows.append(found.update(update))
    whole = state.student_weights(found.trainer, found.trainer.training.adapter)
    whole = {name: value.detach().clone() for name, value in whole.items()}
    whole |= {f"state.{name}": value for name, value in state.state(found.trainer).items()}
    mine = sum(getattr(each, "_local_tensor", each).numel() for each in found["fake"].network.parameters())
    columns = sorted(set().union(*rows))  # a level that no image had in an update has no value there
    log = torch.tensor([[row.get(name, float("nan")) for name in columns] for row in rows])
    steps = found.steps(0)[0]
    with torch.no_grad():
        images = torch.cat([_generated(found.trainer.method, rows) for rows in steps.rows.values()])
    if split.processes > 1:
        both = [torch.empty_like(images) for _ in range(split.processes)]
        distributed.all_gather(both, images)
        images = torch.cat([image for size in (4, 3) for image in _places(both, size)])
    return whole | {"log": log, "grid": images, "mine": torch.tensor(mine)}


def _generated(method: Method, rows: Rows) -> torch.Tensor:
    """The student's x0."""
    return method.trained_call(rows)[0] if isinstance(method, Tdm) else method.generate(rows)


def _places(both: list[torch.Tensor], size: int) -> list[torch.Tensor]:
    """Images of a part of a batch, of which each process has `size`."""
    return [image[:4] if size == 4 else image[4:] for image in both]


def cases(section: dict, places: list[int], *, shard: bool = False) -> list[dict]:
    """Section of each chosen case, whose parameters two processes share, or one has."""
    found = []
    for case in (CASES[place] for place in places):
        keys = dict(case)
        compute = {"shard_parameters": shard, "gradient_checkpointing": keys.pop("gradient_checkpointing")}
        given = {**section, "method": keys.pop("method", section["method"])}
        found.append(changed(given, compute=compute, processes=1 + shard, **keys))
    return found


def work(folder: Path, rank: int, section: dict, places: list[int]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    given = cases(section, places, shard=True)
    found = [updated(case, BatchSplit(rank, 2, 3)) for case in given]
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), int(sys.argv[2]), *json.load(sys.stdin))
