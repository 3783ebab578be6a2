"""Both pictures of a distillation are made from its files alone, the same bytes each time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dmd.artifacts import manifest, tensors
from dmd.networks import build
from dmd.stages import pictures

IMAGES = {
    "kind": "ddpmpp",
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [],
    "dropout": 0.0,
    "channels": 1,
    "resolution": 8,
    "num_classes": 10,
}
POINTS = {"kind": "mlp", "width": 16, "layers": 2, "channels": 2, "resolution": 1, "num_classes": 0}
SOLVER = {"name": "euler", "steps": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def denoiser(path: Path, network: dict, seed: int) -> Path:
    """A denoiser file as stages teacher and distill write it."""
    torch.manual_seed(seed)
    state = build(network).state_dict()
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in state.items() if value.is_floating_point()}
    weights = {f"{kind}.{name}": value.clone() for kind in ("ema", "raw") for name, value in state.items()}
    shape = [network["channels"], network["resolution"], network["resolution"]]
    facts = {"kind": "train", "network": network, "shape": shape, "num_classes": network["num_classes"]}
    tensors.save(path, weights, {**facts, "sigma_data": 0.5, "sigma": 80.0})
    return path


def log(path: Path, number: int = 400) -> Path:
    """A log of a distillation whose noisiest bins are sometimes empty."""
    generator = np.random.default_rng(0)
    update = np.arange(number)
    noise = np.exp(generator.normal(0, 0.2, (16, number)))
    columns = {
        "update": update,
        "matching_loss": 0.1 * noise[0] * np.exp(update / number),
        "regression_loss": 0.3 * noise[1] * np.exp(-3 * update / number),
        "fake_loss": 0.5 * noise[2],
        "generator_gradient_norm": noise[3],
        "fake_gradient_norm": 2 * noise[4],
        "matching_factor": 5 * noise[5],
        "generated_mean": -0.6 + 0.01 * generator.normal(size=number),
        "generated_std": 0.7 + 0.01 * generator.normal(size=number),
        "nonfinite_samples": np.zeros(number),
    }
    for number_of_bin in range(10):
        gap = 0.02 * (number_of_bin + 1) * noise[6 + number_of_bin] * np.exp(-update / number)
        columns[f"gap_bin{number_of_bin}"] = np.where(generator.random(number) < 0.1, np.nan, gap)
    manifest.write(path, pa.table(columns), {})
    return path


@pytest.fixture(params=[IMAGES, POINTS], ids=["images", "points"])
def inputs(request, tmp_path):
    return {
        "teacher": denoiser(tmp_path / "denoiser.safetensors", request.param, 0),
        "generator": denoiser(tmp_path / "generator.safetensors", request.param, 1),
        "table": log(tmp_path / "log.parquet"),
    }


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
        return image.size


def test_pictures_are_the_same_bytes_each_time_and_large_enough_to_see(tmp_path, inputs):
    names = [(tmp_path / f"grid{i}.png", tmp_path / f"training{i}.png") for i in range(2)]
    for grid, training in names:
        pictures.run(**inputs, grid=grid, training=training, solver=SOLVER)
    for first, second in zip(*names, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert min(size(first)) > 500


def test_training_picture_is_made_of_a_log_that_lacks_columns(tmp_path):
    teacher = denoiser(tmp_path / "denoiser.safetensors", POINTS, 0)
    table = tmp_path / "log.parquet"
    columns = {"update": [0, 1, 2], "regression_loss": [3.0, 2.0, 1.0], "matching_loss": [None, np.nan, None]}
    manifest.write(table, pa.table(columns), {})
    grid, training = tmp_path / "grid.png", tmp_path / "training.png"
    pictures.run(teacher=teacher, generator=teacher, table=table, grid=grid, training=training, solver=SOLVER)
    assert min(size(training)) > 500


def test_teacher_and_generator_of_different_shapes_are_refused(tmp_path):
    teacher = denoiser(tmp_path / "denoiser.safetensors", POINTS, 0)
    generator = denoiser(tmp_path / "generator.safetensors", IMAGES, 0)
    grid, training = tmp_path / "grid.png", tmp_path / "training.png"
    with pytest.raises(ValueError, match=r"makes \[2, 1, 1\], .* makes \[1, 8, 8\]"):
        pictures.run(
            teacher=teacher,
            generator=generator,
            table=log(tmp_path / "l.parquet"),
            solver=SOLVER,
            grid=grid,
            training=training,
        )
    assert not grid.exists() and not training.exists()
