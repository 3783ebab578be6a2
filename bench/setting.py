"""The network of the benchmarks, its file, and the settings with which they run stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmd.config.training import Distill
from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.stages import pairs

THREADS = 1
BATCH_SIZE = 64  # images
RESOLUTION = 16  # pixels
NUM_CLASSES = 10
SIGMA_MAX = 80.0
NETWORK: dict[str, Any] = {  # 1.17 M parameters
    "kind": "ddpmpp",
    "resolution": RESOLUTION,
    "channels": 3,
    "width": 40,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [8],
    "num_classes": NUM_CLASSES,
}
SOLVER = {"name": "heun", "steps": 5, "sigma_min": 0.002, "sigma_max": SIGMA_MAX, "rho": 7.0}
NUM_CALLS = 9  # of Heun in 5 steps


def write_teacher(path: Path, network: dict[str, Any] = NETWORK) -> None:
    """Writes a teacher with random weights, in the format of stage teacher."""
    torch.manual_seed(0)
    denoiser = loading.new_denoiser(network, sigma_data=0.5)
    for weight in denoiser.parameters():
        if not weight.any():  # layers at zero would pass no gradient
            torch.nn.init.normal_(weight, std=0.02)
    tensors = {f"ema.{name}": value for name, value in denoiser.network.state_dict().items()}
    facts = {"network": network, "sigma_data": 0.5, "num_classes": network["num_classes"]}
    _write(path, tensors, facts, resolution=network["resolution"])


def write_exact_teacher(path: Path, *, resolution: int) -> None:
    """Writes the exact, fast denoiser of a Gaussian."""
    tensors = {"means": torch.zeros(1, 3, resolution, resolution), "stds": torch.ones(1), "weights": torch.ones(1)}
    _write(path, tensors, {"num_classes": NUM_CLASSES, "sigma_data": 1.0}, resolution=resolution)


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], *, resolution: int) -> None:
    kind = "train" if "network" in metadata else "gaussian-mixture"
    facts = {**metadata, "kind": kind, "shape": [3, resolution, resolution]}
    with record.publish(path, stage="teacher", inputs={}) as temporary:
        tensor_files.write(temporary, tensors, facts)


def draw_pairs(
    teacher: Path, output: Path, *, first: int, last: int, shard_size: int, solver: dict[str, Any] = SOLVER
) -> None:
    """Runs stage pairs: shards first .. last and their block file `output`, which can be read like a manifest."""
    pairs.run(
        teacher=teacher,
        output=output,
        solver=solver,
        first_seed=2**31,
        batch_size=BATCH_SIZE,
        labels="random",
        shard_size=shard_size,
        first=first,
        last=last,
        threads=THREADS,
    )


def distill(
    *,
    shared_noise: bool,
    batch_size: int = BATCH_SIZE,
    compute: Mapping[str, object] | None = None,
    optimiser: Mapping[str, object] | None = None,
    **method: object,
) -> Distill:
    """Section `distill` with the defaults of method dmd and L2 distance; `method`: further keys of the method."""
    sizes: dict[str, object] = {"matching_batch_size": batch_size, "regression_batch_size": batch_size}
    section = {"name": "dmd", "shared_noise": shared_noise, **sizes, **method}
    return Distill.model_validate(
        {"method": section, "compute": dict(compute or {}), "optimisers": {"student": dict(optimiser or {})}}
    )
