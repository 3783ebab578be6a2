"""The smallest real chain: a digits teacher, two shards of pairs, their manifest; numbers of a distillation."""

import copy
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

TEACHER = {
    "kind": "train",
    "dataset": {"kind": "digits", "split_seed": 0, "num_training": 64},
    "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1], "blocks": 1, "attention": [8], "dropout": 0.0},
    "training": {
        "updates": 12,
        "batch_size": 16,
        "learning_rate": 2.0e-3,
        "warmup": 2,
        "decay": "cosine",
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "gradient_clip": 1.0,
        "ema_decay": 0.8,
        "sigma_log_mean": -1.2,
        "sigma_log_std": 1.2,
    },
    "seed": 0,
}
SOLVER = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
PAIRS = {
    "solver": SOLVER,
    "first_seed": 2**31,
    "batch_size": 4,
    "labels": "random",
    "shard_size": 6,
    "first": 0,
    "last": 1,
}
PHASE = {
    "train": "both",
    "matching_scale": 1.0,
    "regression_scale": 1.0,
    "fake_updates": 1,
    "learning_rate_scale": 1.0,
    "fresh_optimiser": False,
}
DISTILL = {
    "sigma": 80.0,
    "levels": {
        "count": 1000,
        "rho": 7.0,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "min_index": 20,
        "max_index": 980,
    },
    "weighting": "eq8",
    "alpha_factor": False,
    "fake_score": True,
    "matching_weight": 1.0,
    "regression_weight": 0.25,
    "regression_distance": {"kind": "l2"},
    "matching_batch_size": 4,
    "regression_batch_size": 5,
    "shared_noise": False,
    "optimiser": {
        "learning_rate": 1.0e-3,
        "fake_learning_rate": None,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "warmup": 2,
        "decay": "cosine",
        "gradient_clip": 10.0,
    },
    "ema_decay": 0.9,
    "phases": [
        {**PHASE, "updates": 4, "matching_scale": 0.0, "fake_updates": 0},
        {**PHASE, "updates": 3, "train": "fake"},
        {**PHASE, "updates": 9, "fake_updates": 2, "learning_rate_scale": 0.5},
    ],
    "seed": 0,
    "checkpoint_every": 3,
    "grid_every": 1,
    "log_every": 1,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture
def teacher_numbers() -> dict:
    """Spec of a tiny digits teacher."""
    return copy.deepcopy(TEACHER)


@pytest.fixture
def pairs_numbers() -> dict:
    """Spec of two shards of six pairs."""
    return copy.deepcopy(PAIRS)


@pytest.fixture
def distill_numbers() -> dict:
    """Spec of a distillation of 16 updates in three phases."""
    return copy.deepcopy(DISTILL)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """A trained tiny teacher; not to be changed."""
    from dmd.stages import teacher

    path = tmp_path_factory.mktemp("chain") / "teacher" / "denoiser.safetensors"
    teacher.run(output=path, **copy.deepcopy(TEACHER))
    return path


@pytest.fixture(scope="session")
def manifest_file(teacher_file) -> Path:
    """The manifest of twelve pairs of `teacher_file`; not to be changed."""
    from dmd.stages import manifest, pairs

    folder = teacher_file.parent.parent / "pairs"
    block = folder / "blocks" / "00000-00001.parquet"
    pairs.run(teacher=teacher_file, output=block, **copy.deepcopy(PAIRS))
    manifest.run(blocks=[block], output=folder / "manifest.parquet", num=12, shard_size=6)
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def distilled_folder(teacher_file, manifest_file) -> Path:
    """A distillation of `DISTILL` that nothing stopped; not to be changed."""
    from dmd.stages import distill

    folder = teacher_file.parent.parent / "distill"
    outputs = {"output": folder / "generator.safetensors", "table": folder / "log.parquet"}
    distill.run(teacher=teacher_file, manifest=manifest_file, **outputs, **copy.deepcopy(DISTILL))
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random Inception weights in the released layout; not to be changed."""
    from tests.inception_files import write_inception

    return write_inception(tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth")
