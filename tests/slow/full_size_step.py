"""One update of DMD with the ADM network of ImageNet 64x64, batch 1.

Reads section `distill` as JSON, prints seconds and peak memory as JSON. Its own process, since peak memory
is counted over a process's whole life.
"""

import copy
import json
import resource
import sys
import time

import torch

from dmd.methods.base import Facts
from dmd.models.loading import new_denoiser
from dmd.models.networks.published_architectures import IMAGENET64
from tests.trainings import FixedRows, Updates, changed

UPDATES = 2  # the first one makes the moments


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    sizes = {"matching_batch_size": 1, "regression_batch_size": 1, "phases": [{"updates": UPDATES}]}
    section, modules = changed(json.load(sys.stdin), **sizes), _denoisers()
    random = torch.Generator().manual_seed(0)
    noise, reference = (torch.randn(1, 3, 64, 64, generator=random) for _ in range(2))
    label = torch.randint(1000, (1,), generator=random)
    given = {"noise": FixedRows({"noise": noise, "label": label})}
    given["pairs"] = FixedRows({"noise": noise, "label": label, "image": reference / 2})
    updates = Updates(section, modules, Facts((3, 64, 64), 1000, 0.5), given)
    seconds, cpu_seconds, rows = [], [], []
    for update in range(UPDATES):
        start, start_cpu = time.perf_counter(), time.process_time()
        row = updates.update(update)
        rows.append(row)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    found = {
        "parameters": sum(weight.numel() for weight in modules["student"].parameters()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "rows": rows,
        "threads": torch.get_num_threads(),
    }
    json.dump(found, sys.stdout)


def _denoisers() -> dict[str, torch.nn.Module]:
    """Teacher, student and fake denoiser of the same random weights, none of them zero."""
    torch.manual_seed(0)
    teacher = new_denoiser(IMAGENET64, sigma_data=0.5)
    for weight in teacher.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    denoisers = {"teacher": teacher.eval(), "student": copy.deepcopy(teacher), "fake": copy.deepcopy(teacher)}
    for role in ("student", "fake"):
        denoisers[role].network.checkpointing = True
    return denoisers


if __name__ == "__main__":
    main()
