"""The smallest real chain: a digits teacher, two shards of pairs, their manifest; numbers of a distillation."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd.config.training import Distill, TeacherTraining
from dmd.methods.numbers import Numbers

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


def with_section(numbers: dict, *, still: bool = False) -> dict:
    """Arguments of stage distill: keys as in `DISTILL` become a section, all others stay; `still` learns nothing."""
    given = dict(numbers)
    own = {key: given.pop(key) for key in [*given] if key in Numbers.__annotations__}
    device, threads = own.pop("device"), own.pop("threads")
    optimiser = dict(own.pop("optimiser"))
    rate = optimiser.pop("fake_learning_rate")
    schedule = {key: optimiser.pop(key) for key in ("warmup", "decay")}
    section = {key: own.pop(key) for key in [*own] if key in Distill.model_fields}
    section["method"] = {"name": "dmd", **own}
    section["optimisers"] = {"student": optimiser, "fake": {} if rate is None else {"learning_rate": rate}}
    section["schedule"] = schedule
    distill = Distill.model_validate(section)
    if still:  # the configuration has no rate of 0
        rates = {role: each.model_copy(update={"learning_rate": 0.0}) for role, each in distill.optimisers.items()}
        distill = distill.model_copy(update={"optimisers": rates})
    return {**given, "distill": distill, "device": device, "threads": threads}


def with_training(numbers: dict, **changed: Any) -> dict:
    """Arguments of stage teacher: `training` becomes a section, with some of its keys changed."""
    return {**numbers, "training": TeacherTraining.model_validate({**numbers["training"], **changed})}


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
    teacher.run(output=path, **with_training(TEACHER))
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
    distill.run(teacher=teacher_file, manifest=manifest_file, **outputs, **with_section(DISTILL))
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random Inception weights in the released layout; not to be changed."""
    from tests.inception_files import write_inception

    return write_inception(tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth")
