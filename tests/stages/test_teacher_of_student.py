"""Stage teacher with the student of an experiment: its weights and facts, pairs of it, the next round, refusals."""

from pathlib import Path

import pytest
import torch

from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.sampling.sampler import Sampler
from dmd.stages import teacher
from tests.trainings import distil

METHOD = {"name": "rectified-flow", "objective": "reflow", "batch_size": 4, "phases": [{"updates": 3}]}


def distilled(folder: Path, teacher_file: Path, manifest_file: Path, **keys) -> Path:
    section = {"method": METHOD | keys, "optimisers": {"student": {"learning_rate": 1e-2}}, "monitor": None}
    return distil(folder, section, teacher=teacher_file, manifest=manifest_file) / "generator.safetensors"


@pytest.fixture(scope="module")
def student(teacher_file, manifest_file, tmp_path_factory) -> Path:
    return distilled(tmp_path_factory.mktemp("reflow"), teacher_file, manifest_file)


def made(student: Path, folder: Path, **keys) -> Path:
    output = folder / "denoiser.safetensors"
    teacher.run(output=output, table=folder / "log.parquet", kind="experiment", student=student, **keys)
    return output


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_teacher_has_the_weights_and_levels_of_the_student(student, teacher_file, tmp_path, weights):
    output = made(student, tmp_path, weights=weights)
    taught, facts = loading.load_denoiser(output)
    learnt, its = loading.load_denoiser(student, weights=weights)
    expected = learnt.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in taught.state_dict().items())
    first, _ = loading.load_denoiser(teacher_file)
    assert any(not torch.equal(value, expected[name]) for name, value in first.state_dict().items())
    assert facts["kind"] == "experiment" and "calls" not in facts and "denoises" not in facts
    assert {key: facts[key] for key in ("network", "shape", "num_classes", "sigma_data")} == {
        key: its[key] for key in ("network", "shape", "num_classes", "sigma_data")
    }
    assert facts["inputs"]["student"] == record.check(student) and facts["spec"]["weights"] == weights


def test_it_is_sampled_as_a_teacher_and_has_the_same_bytes_again(student, tmp_path):
    output = made(student, tmp_path)
    (tmp_path / "again").mkdir()
    assert made(student, tmp_path / "again").read_bytes() == output.read_bytes()
    one = Sampler(output, solver={"name": "euler", "steps": 1, "rho": 7.0})(3, seed=5)
    torch.testing.assert_close(one, Sampler(student, solver=None)(3, seed=5), rtol=1e-5, atol=1e-5)


def test_next_round_starts_from_it_and_its_student_of_one_call_teaches_none(student, manifest_file, tmp_path):
    output = made(student, tmp_path)
    last = distilled(tmp_path / "last", output, manifest_file, objective="distillation")
    assert "denoises" not in tensor_files.load_metadata(last)
    assert tensor_files.load_metadata(last)["inputs"]["teacher"] == record.check(output)
    with pytest.raises(ValueError, match="is no denoiser at all noise levels, as a teacher must be"):
        made(last, tmp_path / "last")


def test_students_of_other_methods_and_missing_weights_are_refused(distilled_folder, student, tmp_path):
    with pytest.raises(ValueError, match="is no denoiser at all noise levels"):
        made(distilled_folder / "generator.safetensors", tmp_path)
    with pytest.raises(ValueError, match="holds no 'best' weights"):
        made(student, tmp_path, weights="best")
    with pytest.raises(ValueError, match="'experiment' a student"):
        teacher.run(output=tmp_path / "d", table=tmp_path / "t", kind="experiment")
    assert not list(tmp_path.glob("*.safetensors"))
