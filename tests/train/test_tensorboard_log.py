"""TensorBoard logs: the log rows and grids of a distillation, each once, beside the same bytes."""

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dmd.data import manifest as manifests
from dmd.jobs import job
from tests.trainings import NAMES, changed, digests, distil


@pytest.fixture
def run(teacher_file, manifest_file, distill_section):
    def distilled(folder: Path) -> Path:
        section = changed(distill_section, tensorboard=True, grid_every=1)
        return distil(folder, section, teacher=teacher_file, manifest=manifest_file)

    return distilled


def events(folder: Path) -> tuple[dict[tuple[str, int], float], dict[int, bytes]]:
    """Values by curve and update, and pictures by update; fails on a second one of either."""
    values: dict[tuple[str, int], float] = {}
    pictures: dict[int, bytes] = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == "grid":
                    assert event.step not in pictures
                    pictures[event.step] = value.tensor.string_val[2]
                else:
                    assert (value.tag, event.step) not in values
                    values[value.tag, event.step] = value.tensor.float_val[0]
    return values, pictures


def expected(folder: Path) -> dict[tuple[str, int], float]:
    rows = manifests.read_table(folder / NAMES[1])[0].to_pylist()
    return {
        (name, row["update"]): float(np.float32(value))
        for row in rows
        for name, value in row.items()
        if name != "update" and math.isfinite(value)
    }


def test_event_log_holds_each_value_of_the_log_and_each_grid_once(run, tmp_path, distilled_folder):
    folder = run(tmp_path)
    values, pictures = events(folder)
    assert values == expected(folder) and ("loss/regression", 0) in values
    assert sorted(pictures) == list(range(1, 17))
    shown = np.asarray(Image.open(io.BytesIO(pictures[16])).convert("L"))
    assert (shown == np.asarray(Image.open(folder / "grids" / "00000016.png"))).all()
    assert digests(folder) == digests(distilled_folder)


def test_event_log_of_a_resumed_run_has_no_point_twice(run, tmp_path):
    obstacle = tmp_path / "grids" / "00000008.png"
    obstacle.mkdir(parents=True)
    with pytest.raises(OSError):
        run(tmp_path)
    values, pictures = events(tmp_path)
    assert max(update for _, update in values) == 7 and max(pictures) == 7  # two updates beyond the last checkpoint
    obstacle.rmdir()
    values, pictures = events(run(tmp_path))
    assert values == expected(tmp_path) and sorted(pictures) == list(range(1, 17))


def test_event_log_is_off_unless_it_is_asked_for(distill_section, distilled_folder):
    assert "tensorboard" not in distill_section and not (distilled_folder / "tensorboard").exists()


def test_event_log_without_its_package_says_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        run(tmp_path)
    assert caught.value.name in job.EXTRAS  # whose extra the job names
