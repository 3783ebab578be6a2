"""The smallest real chain: a digits teacher, two shards of pairs, their manifest; the section of a distillation."""

import copy
from pathlib import Path

import pytest
import torch

from tests.trainings import distil, train

torch.set_num_threads(1)

TEACHER = {
    "kind": "train",
    "dataset": {"kind": "digits", "split_seed": 0, "num_training": 64},
    "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1], "blocks": 1, "attention": [8], "dropout": 0.0},
    "training": {
        "method": {"name": "denoising", "batch_size": 16, "phases": [{"updates": 12}]},
        "optimisers": {"student": {"learning_rate": 2.0e-3, "gradient_clip": 1.0}},
        "schedule": {"warmup": 2, "decay": "cosine"},
        "ema_decay": 0.8,
    },
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
DISTILL = {
    "method": {
        "name": "dmd",
        "matching_batch_size": 4,
        "regression_batch_size": 5,
        "phases": [
            {"updates": 4, "matching_scale": 0.0, "fake_updates": 0},
            {"updates": 3, "train": "fake"},
            {"updates": 9, "fake_updates": 2, "learning_rate_scale": 0.5},
        ],
    },
    "optimisers": {"student": {"learning_rate": 1.0e-3}},
    "schedule": {"warmup": 2, "decay": "cosine"},
    "ema_decay": 0.9,
    "checkpoint_every": 3,
    "grid_every": 8,
    "monitor": {"every": 4, "num_images": 8, "seeds": 4},
}


@pytest.fixture
def teacher_numbers() -> dict:
    """What stage teacher takes for a tiny digits teacher; see `trainings.train`."""
    return copy.deepcopy(TEACHER)


@pytest.fixture
def pairs_numbers() -> dict:
    """Spec of two shards of six pairs."""
    return copy.deepcopy(PAIRS)


@pytest.fixture
def distill_section() -> dict:
    """Section of a distillation of 16 updates in three phases; see `trainings.changed` and `trainings.distil`."""
    return copy.deepcopy(DISTILL)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """A trained tiny teacher; not to be changed."""
    return train(tmp_path_factory.mktemp("chain") / "teacher" / "denoiser.safetensors", TEACHER)


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
    return distil(teacher_file.parent.parent / "distill", DISTILL, teacher=teacher_file, manifest=manifest_file)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random Inception weights in the released layout; not to be changed."""
    from tests.inception_files import write_inception

    return write_inception(tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth")
