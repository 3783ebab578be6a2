"""Stage sample: any solver, either weights, no noise on disk, calls counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmd.data import manifest, shards
from dmd.models import loading
from dmd.provenance import tensor_files
from dmd.sampling.noise import seeded_noise
from dmd.stages import sample

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
NUMBERS = {"weights": "ema", "first_seed": 0, "batch_size": 4, "labels": "balanced"}
THREADS = {"OMP_NUM_THREADS": "1"}
NUMBERS |= {"shard_size": 5, "num_samples": 10, "first": 0, "last": 1}


def draw(folder, denoiser, solver: dict, **changed) -> tuple[list[tuple[int, shards.Item]], manifest.Manifest]:
    block = folder / "blocks" / "00000-00001.parquet"
    sample.run(denoiser=denoiser, output=block, solver=solver, **NUMBERS | changed)
    found = manifest.read(block)
    return [item for shard in found.shards for item in shards.read(shard.path)], found


def test_one_step_samples_are_the_denoiser_at_its_own_sigma(teacher_file, tmp_path):
    content, metadata = tensor_files.load(teacher_file)
    generator = tmp_path / "generator.safetensors"
    tensor_files.save(generator, content, metadata | {"kind": "generator", "sigma": 3.0, "calls": {"sigmas": [3.0]}})
    found, block = draw(tmp_path, generator, {"name": "student"})
    assert block.metadata["facts"]["sigma"] == 3.0 and block.metadata["facts"]["network_calls"] == 1
    noise, label = seeded_noise(range(10), (1, 8, 8), num_classes=10, labels="balanced")
    denoiser, _ = loading.load_denoiser(generator)
    expected = denoiser(3.0 * noise, torch.full((10,), 3.0), label)
    for index, (number, item) in enumerate(found):
        assert number == index and sorted(item) == ["image", "label"] and item["label"] == index
        np.testing.assert_allclose(item["image"], expected[index].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "steps", "calls"), [("heun", 2, 3), ("euler", 1, 1), ("euler", 4, 4)])
def test_network_calls_are_counted(teacher_file, tmp_path, name, steps, calls):
    _, block = draw(tmp_path, teacher_file, {"name": name, "steps": steps, **GRID})
    assert block.metadata["facts"]["network_calls"] == calls


def test_raw_and_averaged_weights_draw_other_images_of_the_same_seeds(teacher_file, tmp_path):
    solver = {"name": "euler", "steps": 1, **GRID}
    ema, _ = draw(tmp_path / "ema", teacher_file, solver)
    raw, _ = draw(tmp_path / "raw", teacher_file, solver, weights="raw")
    again, _ = draw(tmp_path / "again", teacher_file, solver)
    for (_, one), (_, other), (_, same) in zip(ema, raw, again, strict=True):
        assert one["label"] == other["label"] and not np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["image"], same["image"])
    for name in ("00000.tar", "00001.tar", "blocks/00000-00001.parquet"):
        assert (tmp_path / "ema" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_samples_do_not_share_the_noise_of_pairs(manifest_file, teacher_file, tmp_path):
    _, block = draw(tmp_path, teacher_file, {"name": "euler", "steps": 1, **GRID})
    assert not set(block.table["seed"].to_pylist()) & set(manifest.read(manifest_file).table["seed"].to_pylist())


def test_partial_shards_and_unknown_weights_are_refused(teacher_file, tmp_path):
    solver = {"name": "euler", "steps": 1, **GRID}
    with pytest.raises(ValueError, match="num_samples 12 must be a multiple of shard_size 5"):
        draw(tmp_path, teacher_file, solver, num_samples=12)
    with pytest.raises(ValueError, match="holds no 'best' weights"):
        draw(tmp_path, teacher_file, solver, weights="best")
    with pytest.raises(ValueError, match="solver 'dpm'"):
        draw(tmp_path, teacher_file, {"name": "dpm", "sigma_max": 80.0})
    assert not list(tmp_path.glob("*.tar"))


SHORT_OF_MEMORY = """
import resource, sys
import pyarrow.compute, safetensors.torch
from dmd.config.sections import Sample
from dmd.sampling.sampler import Sampler
from dmd.jobs import job
from dmd.stages import sample

build, more = Sampler.__init__, int(sys.argv.pop(1))

def limited(*given, **named):
    now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, ((now << 10) + more, resource.RLIM_INFINITY))
    build(*given, **named)

Sampler.__init__ = limited
job.main(sample.run, Sample)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("more", [1 << 20, 3 << 20, 64 << 20])
def test_images_drawn_where_memory_is_short_are_not_kept(teacher_file, tmp_path, more):
    """MKL's products round otherwise where they are refused a buffer, and say nothing: a rerun would keep these."""
    block = tmp_path / "blocks" / "00000-00001.parquet"
    spec = json.dumps(NUMBERS | {"solver": {"name": "euler", "steps": 1, **GRID}})
    line = [sys.executable, "-c", SHORT_OF_MEMORY, str(more), "--denoiser", str(teacher_file), "--output", str(block)]
    found = subprocess.run([*line, "--spec", spec], capture_output=True, text=True, env=os.environ | THREADS)
    assert found.returncode == 1 and "error: memory does not suffice: " in found.stderr
    assert not list(tmp_path.rglob("*.tar")) and not block.exists()
