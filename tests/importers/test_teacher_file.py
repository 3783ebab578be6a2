"""A trained teacher as a small file, and as a teacher again."""

from pathlib import Path

import pytest
import torch

import dmd
from dmd.importers import teacher_file as importer
from dmd.provenance import record, tensor_files
from dmd.stages import teacher
from dmd.stages import teacher_file as stage


@pytest.fixture
def small(teacher_file: Path, tmp_path: Path) -> Path:
    stage.run(teacher=teacher_file, output=tmp_path / "small.safetensors", hours=0.1)
    return tmp_path / "small.safetensors"


def imported(source: Path, folder: Path, sha256: str | None = None) -> Path:
    output = folder / "imported" / "denoiser.safetensors"
    teacher.run(output=output, table=output.with_name("log.parquet"), kind="file", source=source, sha256=sha256)
    return output


def test_imported_teacher_is_the_trained_one_up_to_float16(teacher_file, small, tmp_path):
    trained, again = (dmd.load(path, device="cpu") for path in (teacher_file, imported(small, tmp_path)))
    assert again.num_classes == trained.num_classes and again.shape == trained.shape
    torch.testing.assert_close(again(4, label=1, seed=0), trained(4, label=1, seed=0), rtol=0, atol=0.02)
    weights, facts = tensor_files.load(imported(small, tmp_path))
    before = tensor_files.load(teacher_file)[0]
    assert all(torch.equal(value, before[name].half().float()) for name, value in weights.items())
    for key in ("network", "sigma_data", "dataset_sha256"):
        assert facts[key] == trained.metadata[key]


def test_file_is_small_and_has_the_recipe(teacher_file, small):
    tensors, metadata = tensor_files.load(small)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert metadata["spec"] == tensor_files.load_metadata(teacher_file)["spec"] and metadata["hours"] == 0.1
    assert small.stat().st_size < teacher_file.stat().st_size / 3  # which has raw weights, too


def test_other_files_are_refused(teacher_file, small, tmp_path):
    with pytest.raises(ValueError, match="of kind 'train', not teacher-file"):
        imported(teacher_file, tmp_path)
    with pytest.raises(ValueError, match="only a teacher that is trained here"):
        stage.run(teacher=imported(small, tmp_path), output=tmp_path / "other.safetensors", hours=0.1)
    with pytest.raises(ValueError, match=r"but teacher\.sha256 pins"):
        imported(small, tmp_path / "again", sha256="0" * 64)
    tensors, metadata = tensor_files.load(small)
    tensor_files.save(tmp_path / "bad.safetensors", tensors | {"count": torch.tensor(3)}, metadata)
    with pytest.raises(ValueError, match="something else than averaged weights: count"):
        importer.load(tmp_path / "bad.safetensors")
    name = next(iter(tensors))
    tensor_files.save(tmp_path / "bad.safetensors", tensors | {name: tensors[name] * torch.inf}, metadata)
    with pytest.raises(ValueError, match="not finite"):
        imported(tmp_path / "bad.safetensors", tmp_path / "third")


def test_weights_beyond_float16_are_refused(teacher_file, tmp_path):
    tensors, metadata = tensor_files.load(teacher_file)
    with record.publish(tmp_path / "denoiser.safetensors", stage="teacher", inputs={}) as temporary:
        tensor_files.write(temporary, {name: value + 1e5 for name, value in tensors.items()}, metadata)
    with pytest.raises(ValueError, match="beyond float16: ema"):
        stage.run(teacher=tmp_path / "denoiser.safetensors", output=tmp_path / "small.safetensors", hours=0.1)
    assert not (tmp_path / "small.safetensors").exists()
