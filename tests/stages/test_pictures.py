"""Both pictures of a distillation are made from its files alone, the same bytes each time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dmd.data import manifest
from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES
from dmd.models.networks import build
from dmd.provenance import tensor_files
from dmd.report import plots
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
    tensor_files.save(path, weights, {**facts, "sigma_data": 0.5, "sigma": 80.0, "calls": {"sigmas": [80.0]}})
    return path


def log(path: Path, number: int = 400) -> Path:
    """A log of a distillation whose noisiest bins are sometimes empty."""
    generator = np.random.default_rng(0)
    update = np.arange(number)
    noise = np.exp(generator.normal(0, 0.2, (16, number)))
    columns = {
        "update": update,
        "phase": update // (number // 2),
        "loss/matching": 0.1 * noise[0] * np.exp(update / number),
        "loss/regression": 0.3 * noise[1] * np.exp(-3 * update / number),
        "loss/fake": 0.5 * noise[2],
        "gradient_norm/student": noise[3],
        "gradient_norm/fake": 2 * noise[4],
        "matching/factor": 5 * noise[5],
        "generated/mean": -0.6 + 0.01 * generator.normal(size=number),
        "generated/std": 0.7 + 0.01 * generator.normal(size=number),
        "matching/nonfinite": np.zeros(number),
    }
    for number_of_bin in range(10):
        gap = 0.02 * (number_of_bin + 1) * noise[6 + number_of_bin] * np.exp(-update / number)
        columns[f"matching/gap{number_of_bin}"] = np.where(generator.random(number) < 0.1, np.nan, gap)
    manifest.write(path, pa.table(columns), {})
    return path


@pytest.fixture(scope="module", params=[IMAGES, POINTS], ids=["images", "points"])
def inputs(request, tmp_path_factory) -> dict[str, Path]:
    """Files of both denoisers and the log; not to be changed."""
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "teacher": denoiser(folder / "denoiser.safetensors", request.param, 0),
        "generator": denoiser(folder / "generator.safetensors", request.param, 1),
        "table": log(folder / "log.parquet"),
    }


def draw(folder: Path, inputs: dict[str, Path], solver: dict | None) -> tuple[Path, Path]:
    """Both pictures of `inputs`."""
    grid, training = folder / "grid.png", folder / "training.png"
    pictures.run(**inputs, grid=grid, training=training, solver=solver)
    return grid, training


@pytest.fixture(scope="module")
def drawn_once(inputs, tmp_path_factory) -> tuple[Path, Path]:
    """Both pictures with `SOLVER`; not to be changed."""
    return draw(tmp_path_factory.mktemp("drawn"), inputs, SOLVER)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
        return image.size


def test_pictures_are_the_same_bytes_each_time_and_large_enough_to_see(tmp_path, inputs, drawn_once):
    for first, second in zip(drawn_once, draw(tmp_path, inputs, SOLVER), strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert min(size(first)) > 500


def test_a_teacher_without_pairs_draws_with_the_solver_of_its_kind(tmp_path, inputs, drawn_once):
    """That of `dmd.load`: Heun in 18 steps."""
    given = {"left": None, "named": SOLVER | {"name": "heun", "steps": 18}}
    left, named = (draw(tmp_path / name, inputs, solver)[0].read_bytes() for name, solver in given.items())
    assert left == named != drawn_once[0].read_bytes()


def drawn(columns: dict) -> dict[str, tuple[list[str], str]]:
    """Labels and scale of each panel by its title."""
    figure = pictures._training(pd.DataFrame({"update": range(len(next(iter(columns.values())))), **columns}))
    found = {}
    for axes in figure.axes:
        if axes.axison:
            legend = axes.get_legend()
            labels = [] if legend is None else [text.get_text() for text in legend.get_texts()]
            found[axes.get_title(loc="left")] = labels, axes.get_yscale()
    plots.plt.close(figure)
    return found


def test_training_picture_has_a_panel_per_prefix_and_one_per_family_of_bins(tmp_path):
    rows = manifest.read_table(log(tmp_path / "l.parquet"))[0].to_pandas()
    assert drawn(rows.drop(columns="update").to_dict("list")) == {
        "loss": (["fake", "matching", "regression"], "log"),
        "generated": (["mean", "std"], "linear"),
        "gradient norm": (["fake", "student"], "log"),
        "matching": (["factor", "nonfinite: always 0"], "log"),
        "matching gap, by bin": ([str(number) for number in reversed(range(10))], "log"),
    }


def test_log_of_a_method_that_is_not_known_yet_draws_itself():
    """Digits at the end are bins where there is a first and a second one; columns without a value are left out."""
    bins = {f"ratio{number}": [float(number), 1.0, np.nan] for number in range(12)}
    columns = {"loss/l2": [3.0, 2.0, 1.0], "loss/head": [0.5, -0.5, 0.1], **bins, "curriculum": [2, 4, 8]}
    assert drawn(columns | {"loss/none": [np.nan] * 3, "empty/at_all": [None] * 3}) == {
        "loss": (["head", "l2"], "linear"),
        "curriculum": (["curriculum"], "log"),
        "ratio, by bin": (
            [f"{number}" if number != 1 else "1: always 1" for number in reversed(range(12))],
            "linear",
        ),
    }


def test_measurements_come_first_as_points_and_signs_of_drift_are_in_the_title():
    number, every = 80, 8
    measured = np.arange(number) % every == every - 1
    falling = np.where(measured, 0.9 - 0.01 * np.arange(number), np.nan)
    columns = {DIVERSITY: falling, CONTRAST: np.where(measured, 1.0, np.nan), FEATURES: np.where(measured, 0.3, np.nan)}
    rows = pd.DataFrame({"update": range(number), "phase": 0, "loss/a": np.linspace(2.0, 1.0, number), **columns})
    assert [*drawn(rows.drop(columns="update").to_dict("list"))] == ["distance to teacher", "ratio to teacher", "loss"]
    figure = pictures._training(rows)
    line = next(line for line in figure.axes[1].get_lines() if line.get_label() == "diversity")
    assert line.get_marker() == "." and line.get_xdata().tolist() == np.flatnonzero(measured).tolist()
    title = figure._suptitle.get_text() if figure._suptitle else ""
    plots.plt.close(figure)
    assert title.startswith("Training, update by update\nDrift: images of one condition become alike: their diversity")
    assert "fell from 0.83 to 0.11" in title and max(map(len, title.splitlines())) <= 110


def test_panels_mark_where_another_phase_begins():
    rows = pd.DataFrame({"update": [0, 2, 4, 6], "phase": [0, 0, 1, 3], "loss/a": [1.0, 2.0, 3.0, 4.0]})
    figure = pictures._training(rows)
    marks = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    plots.plt.close(figure)
    assert marks == [4, 6]


@pytest.mark.parametrize(
    "columns",
    [{"loss/regression": [3.0, 2.0, 1.0], "loss/matching": [None, np.nan, None]}, {"loss/matching": [None] * 3}, {}],
)
def test_training_picture_is_made_of_a_log_that_lacks_numbers(tmp_path, columns):
    teacher = denoiser(tmp_path / "denoiser.safetensors", POINTS, 0)
    table = tmp_path / "log.parquet"
    manifest.write(table, pa.table({"update": [0, 1, 2], **columns}), {})
    grid, training = tmp_path / "grid.png", tmp_path / "training.png"
    pictures.run(teacher=teacher, generator=teacher, table=table, grid=grid, training=training, solver=SOLVER)
    assert min(size(training)) > 500


def test_teacher_and_generator_of_different_shapes_are_refused(tmp_path):
    teacher = denoiser(tmp_path / "denoiser.safetensors", POINTS, 0)
    generator = denoiser(tmp_path / "generator.safetensors", IMAGES, 0)
    grid, training = tmp_path / "grid.png", tmp_path / "training.png"
    with pytest.raises(ValueError, match=r"makes images \[2, 1, 1\], .* makes \[1, 8, 8\]"):
        pictures.run(
            teacher=teacher,
            generator=generator,
            table=log(tmp_path / "l.parquet"),
            solver=SOLVER,
            grid=grid,
            training=training,
        )
    assert not grid.exists() and not training.exists()
