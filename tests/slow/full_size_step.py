"""One update of DMD with the ADM network of ImageNet 64x64, batch 1.

Reads section and phase of `distill` as JSON, prints seconds and peak memory as JSON. Its own process, since peak memory
is counted over a process's whole life.
"""

import copy
import json
import resource
import sys
import time

import torch

from dmd.loading import new_denoiser
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.networks.released import IMAGENET64

UPDATES = 2  # the first one makes the moments


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    numbers, phase = json.load(sys.stdin)
    teacher, generator, fake = _denoisers()
    distillation = Distillation(teacher, generator, fake, numbers, l2_distance)
    random = torch.Generator().manual_seed(0)
    seconds, cpu_seconds, rows = [], [], []
    for _ in range(UPDATES):
        start, start_cpu = time.perf_counter(), time.process_time()
        noise, reference = (torch.randn(1, 3, 64, 64, generator=random) for _ in range(2))
        label = torch.randint(1000, (1,), generator=random)
        batch = Batch(noise, label, (noise, label, reference / 2))
        image, row = distillation.generator_update(batch, phase, random)
        row |= distillation.fake_update(image, label, random)
        rows.append({name: float(value) for name, value in row.items()})
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    found = {
        "parameters": sum(weight.numel() for weight in generator.parameters()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "rows": rows,
        "threads": torch.get_num_threads(),
    }
    json.dump(found, sys.stdout)


def _denoisers() -> list[torch.nn.Module]:
    """Teacher, generator and fake denoiser of the same random weights, none of them zero."""
    torch.manual_seed(0)
    teacher = new_denoiser(IMAGENET64, sigma_data=0.5)
    for weight in teacher.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    denoisers = [teacher.eval().requires_grad_(False), *(copy.deepcopy(teacher) for _ in range(2))]
    for denoiser in denoisers[1:]:
        denoiser.network.checkpointing = True
    return denoisers


if __name__ == "__main__":
    main()
