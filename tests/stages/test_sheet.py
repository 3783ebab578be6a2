"""The sheet of the first samples."""

import numpy as np
import pytest
from PIL import Image

from dmd.stages import sample, sheet

NUMBERS = {"solver": {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}, "weights": "ema"}
NUMBERS |= {"first_seed": 0, "batch_size": 6, "labels": "balanced", "shard_size": 6, "num_samples": 12}


def test_sheet_shows_the_samples_that_are_scored_and_again_in_the_same_bytes(teacher_file, tmp_path):
    block = tmp_path / "samples" / "blocks" / "00000-00001.parquet"
    sample.run(denoiser=teacher_file, output=block, first=0, last=1, **NUMBERS)
    for name in ("one", "two"):
        sheet.run(block=block, output=tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("L"))
    assert pixels.shape[0] > 500 and pixels.std() > 20  # three rows of four


def test_damaged_samples_are_not_shown(teacher_file, tmp_path):
    block = tmp_path / "samples" / "blocks" / "00000-00000.parquet"
    sample.run(denoiser=teacher_file, output=block, first=0, last=0, **NUMBERS)
    tar = tmp_path / "samples" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-600])
    with pytest.raises(ValueError, match="00000.tar"):
        sheet.run(block=block, output=tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
