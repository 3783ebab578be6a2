"""What is measured: the network, its file, and the numbers of the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmd import loading
from dmd.artifacts import record
from dmd.artifacts import tensors as tensor_files
from dmd.methods.numbers import Numbers
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
    """A teacher of random weights in the layout of stage teacher."""
    torch.manual_seed(0)
    denoiser = loading.new_denoiser(network, sigma_data=0.5)
    for weight in denoiser.parameters():
        if not weight.any():  # layers that start at zero would pass no gradient on
            torch.nn.init.normal_(weight, std=0.02)
    tensors = {f"ema.{name}": value for name, value in denoiser.network.state_dict().items()}
    facts = {"network": network, "sigma_data": 0.5, "num_classes": network["num_classes"]}
    _write(path, tensors, facts, resolution=network["resolution"])


def write_exact_teacher(path: Path, *, resolution: int) -> None:
    """A Gaussian around grey, whose denoiser costs next to nothing."""
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
    """Stage pairs: shards first .. last and their block file `output`, which reads like a manifest."""
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


def distill_numbers(*, shared_noise: bool) -> Numbers:
    """The paper's settings for CIFAR-10, one fake update per generator update, batches of `BATCH_SIZE`."""
    grid = {"count": 1000, "rho": 7.0, "sigma_min": 0.002, "sigma_max": SIGMA_MAX}
    rate = {"learning_rate": 5.0e-5, "fake_learning_rate": None, "warmup": 500, "decay": "constant"}
    phase = {"train": "both", "matching_scale": 1.0, "regression_scale": 1.0, "fake_updates": 1}
    return {
        "sigma": SIGMA_MAX,
        "levels": {**grid, "min_index": 20, "max_index": 980},
        "weighting": "eq8",
        "alpha_factor": False,
        "fake_score": True,
        "matching_weight": 1.0,
        "regression_weight": 0.25,
        "regression_distance": {"kind": "l2"},
        "matching_batch_size": BATCH_SIZE,
        "regression_batch_size": BATCH_SIZE,
        "shared_noise": shared_noise,
        "optimiser": {**rate, "weight_decay": 0.01, "betas": [0.9, 0.999], "gradient_clip": 10.0},
        "ema_decay": 0.999,
        "phases": [{**phase, "updates": 300000, "learning_rate_scale": 1.0, "fresh_optimiser": False}],
        "seed": 0,
        "checkpoint_every": 1000,
        "grid_every": 1000,
        "log_every": 1,
        "device": "cpu",
        "threads": THREADS,
    }
