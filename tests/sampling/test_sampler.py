"""dmd.load: the images of stage sample, of any seeds and labels, in one call."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import dmd
from dmd.data import shards
from dmd.provenance import tensor_files
from dmd.stages import sample

NUMBERS = {"weights": "ema", "first_seed": 0, "labels": "random", "shard_size": 8, "num_samples": 16}
NUMBERS |= {"first": 0, "last": 1, "solver": {"name": "student"}}


@pytest.fixture(scope="module")
def file(distilled_folder):
    return distilled_folder / "generator.safetensors"


def sampled(folder, file, **changed) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of sixteen samples of the stage."""
    sample.run(denoiser=file, output=folder / "blocks" / "00000-00001.parquet", **NUMBERS | changed)
    items = [item for name in ("00000.tar", "00001.tar") for _, item in shards.read(folder / name)]
    image, label = (torch.from_numpy(np.stack([item[name] for item in items])) for name in ("image", "label"))
    return image, label


def test_one_call_draws_what_the_sample_stage_draws(file, tmp_path):
    expected, label = sampled(tmp_path, file, batch_size=4)
    assert torch.equal(dmd.load(file, batch_size=4)(num=16, seed=0), expected)
    images = dmd.load(str(file))(num=16)
    assert images.shape == (16, 1, 8, 8) and images.dtype == torch.float32 and images.std() > 0.01
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(dmd.load(file)(num=16, label=label), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(dmd.load(file, weights="raw")(num=16), expected, atol=1e-3)


def test_balanced_labels_are_those_of_the_sample_stage(file, tmp_path):
    expected, label = sampled(tmp_path, file, batch_size=8, labels="balanced")
    assert label.tolist() == [seed % 10 for seed in range(16)]
    assert torch.equal(dmd.load(file, batch_size=8)(num=16, label="balanced"), expected)


def test_an_image_depends_on_its_own_seed_alone(file):
    generator = dmd.load(file, batch_size=3)
    many = generator(num=8, seed=40)
    for index in range(8):
        assert torch.equal(generator(num=1, seed=40 + index)[0], many[index])
    assert not torch.equal(many[0], many[1])


def test_a_label_replaces_the_drawn_one_and_keeps_the_noise(file):
    generator = dmd.load(file, batch_size=4)
    mixed = generator(num=4, label=[3, 3, 7, 7], seed=5)
    threes, sevens = (generator(num=4, label=label, seed=5) for label in (3, torch.tensor([7, 7, 7, 7])))
    assert torch.equal(mixed, torch.cat([threes[:2], sevens[2:]])) and not torch.equal(threes, sevens)
    drawn = next(generator.batches(range(5, 9)))
    given = next(generator.batches(range(5, 9), fixed_labels=torch.tensor([3, 3, 7, 7])))
    assert torch.equal(drawn.noise, given.noise) and torch.equal(given.image, mixed) and given.network_calls == 1


def test_a_loaded_file_says_what_it_draws(file, teacher_file):
    generator, teacher = dmd.load(file, device="cpu"), dmd.load(teacher_file)
    assert (generator.shape, generator.num_classes, generator.sigma) == ((1, 8, 8), 10, 80.0)
    assert generator.device == torch.device("cpu") and generator.metadata["kind"] == "generator"
    assert teacher.solver == {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def test_a_teacher_draws_with_its_solver_what_stage_sample_draws_with_it(teacher_file, tmp_path):
    grid = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    for name, steps, calls in (("heun", 3, 5), ("euler", 2, 2)):
        solver = {"name": name, "steps": steps, **grid}
        expected, _ = sampled(tmp_path / name, teacher_file, batch_size=8, solver=solver)
        teacher = dmd.load(teacher_file, solver=name, steps=steps, batch_size=8)
        assert torch.equal(teacher(num=16), expected)
        assert next(teacher.batches([0])).network_calls == calls


def test_noise_levels_of_a_file_bound_its_solver(teacher_file, tmp_path):
    content, metadata = tensor_files.load(teacher_file)
    path = tmp_path / "denoiser.safetensors"
    tensor_files.save(path, content, metadata | {"sigma_min": 0.02, "sigma_max": 50.0})
    teacher = dmd.load(path, solver="euler", steps=1)
    assert teacher.sigma == 50.0 and teacher.solver["sigma_min"] == 0.02
    assert teacher(num=1).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 0}, "num: 0 is not at least 1"),
        ({"seed": -1}, r"seed: -1 is outside 0 \.\. 4294967295"),
        ({"num": 2, "seed": 2**32 - 1}, r"seed: 4294967295 is outside 0 \.\. 4294967294"),
        ({"label": 10}, r"label: 10 is no class of this denoiser: its classes are 0 \.\. 9"),
        ({"label": -1}, "label: -1 is no class"),
        ({"num": 3, "label": [1, 2]}, r"label: shape \(2,\) does not fit num 3"),
        ({"label": torch.tensor([0.5])}, "label: torch.float32 is no integer type"),
        ({"label": "sorted"}, "labels must be 'random' or 'balanced', got 'sorted'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(file, given, message):
    with pytest.raises(ValueError, match=message):
        dmd.load(file)(**given)


def test_what_cannot_be_loaded_is_refused(file, teacher_file, tmp_path):
    for path, numbers, message in (
        (tmp_path / "none.safetensors", {}, "none.safetensors cannot be read"),
        (file, {"weights": "worst"}, "holds no 'worst' weights"),
        (file, {"steps": 4}, "is a student: solver None and steps 4 are for teachers"),
        (file, {"solver": "heun"}, "is a student: solver 'heun'"),
        (file, {"batch_size": 0}, "batch_size: 0 is not at least 1"),
        (teacher_file, {"solver": "student"}, "solver 'student': .* is a teacher; use one of"),
        (teacher_file, {"steps": 0}, "need num >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dmd.load(path, **numbers)(num=1)


def test_a_label_for_a_denoiser_without_classes_is_refused(file, tmp_path):
    content, metadata = tensor_files.load(file)
    path = tmp_path / "generator.safetensors"
    network = metadata["network"] | {"num_classes": 0}
    bare = {name: value for name, value in content.items() if "map_label" not in name}
    tensor_files.save(path, bare, metadata | {"num_classes": 0, "network": network})
    assert dmd.load(path)(num=2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="label: 0 is no class of this denoiser: it has no classes"):
        dmd.load(path)(num=2, label=0)


def test_the_package_alone_imports_nothing_of_its_own():
    code = "import sys, dmd; print([name for name in sys.modules if name.startswith(('dmd.', 'torch', 'numpy'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": {"kind": "ddpmpp"}}, "network ddpmpp: missing"),
        ({"shape": [1, 0, 8]}, "shape .* is no"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"sigma_data": "0.5"}, "sigma_data '0.5' is no noise level"),
        ({"network": None}, "its metadata has no network"),
    ],
)
def test_file_that_says_something_else_of_its_denoiser_is_named(teacher_file, tmp_path, changed, message):
    weights, metadata = tensor_files.load(teacher_file)
    tensor_files.save(tmp_path / "a.safetensors", weights, metadata | changed)
    with pytest.raises(ValueError, match=f"a.safetensors.*{message}"):
        dmd.load(tmp_path / "a.safetensors", device="cpu")


def test_network_that_a_file_only_claims_takes_no_memory(teacher_file, tmp_path):
    weights, metadata = tensor_files.load(teacher_file)
    for claim in ({"width": 1 << 20}, {"blocks": 10**9}, {"multipliers": [1] * 5000}):
        tensor_files.save(tmp_path / "a.safetensors", weights, metadata | {"network": metadata["network"] | claim})
        with pytest.raises(ValueError, match="a.safetensors"):
            dmd.load(tmp_path / "a.safetensors", device="cpu")
