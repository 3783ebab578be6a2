"""Stage teacher: the same bytes again, also after kills and signals, both kinds, clear refusals."""

import copy
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dmd.config.training import TeacherTraining
from dmd.data import manifest as manifests
from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.stages import teacher
from tests.conftest import TEACHER
from tests.trainings import changed, checkpoints, train, train_command

MIXTURE = {
    "kind": "gaussian-mixture",
    "means": [[-1.0, 0.0], [1.0, 0.0]],
    "stds": [0.2, 0.4],
    "weights": [1.0, 3.0],
    "num_training": 10,
    "num_held_out": 10,
    "seed": 0,
}
DROPOUT = TEACHER | {
    "network": TEACHER["network"] | {"dropout": 0.3},
    "training": changed(TEACHER["training"], label_dropout=0.2, checkpoint_every=5),
}


def test_teacher_from_nothing_has_the_same_bytes_again(teacher_file, teacher_numbers, tmp_path):
    torch.rand(3)  # the global generator stands elsewhere
    train(tmp_path / "denoiser.safetensors", teacher_numbers)
    assert (tmp_path / "denoiser.safetensors").read_bytes() == teacher_file.read_bytes()
    assert record.check(teacher_file)


def test_teacher_says_what_it_is(teacher_file, teacher_numbers):
    found, metadata = tensor_files.load(teacher_file)
    assert metadata["shape"] == [1, 8, 8] and metadata["num_classes"] == 10 and metadata["kind"] == "train"
    assert metadata["network"] == {**teacher_numbers["network"], "channels": 1, "resolution": 8, "num_classes": 10}
    assert 0.5 < metadata["sigma_data"] < 1
    training = TeacherTraining.model_validate(teacher_numbers["training"]).spec()
    spec = {key: value for key, value in teacher_numbers.items() if key != "dataset"}
    assert metadata["spec"] == {**spec, "training": training, "device": "cpu", "threads": 1}
    assert training["method"] == teacher_numbers["training"]["method"] and "checkpoint_every" not in training
    raw, ema = ({name[4:] for name in found if name.startswith(prefix)} for prefix in ("raw.", "ema."))
    assert raw == ema and any(not torch.equal(found[f"raw.{name}"], found[f"ema.{name}"]) for name in raw)


def test_another_seed_gives_other_weights(teacher_file, teacher_numbers, tmp_path):
    train(tmp_path / "t", teacher_numbers | {"training": changed(teacher_numbers["training"], seed=1)})
    one, other = (tensor_files.load(path)[0] for path in (teacher_file, tmp_path / "t"))
    assert not torch.equal(one["ema.map_layer0.weight"], other["ema.map_layer0.weight"])


@pytest.fixture
def with_dropout() -> dict:
    """A teacher with dropout, some labels left out, and a checkpoint every fifth of 12 updates."""
    return copy.deepcopy(DROPOUT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a teacher of `DROPOUT` that nothing stopped; not to be changed."""
    return train(tmp_path_factory.mktemp("whole") / "denoiser.safetensors", DROPOUT).parent


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("denoiser.safetensors", "log.parquet")]


def started(line: list[str]) -> subprocess.Popen:
    return subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def wait_for(moment: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120.0
    while not moment.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{moment} never came"
        time.sleep(0.001)


def test_a_teacher_with_dropout_that_is_killed_continues_to_the_same_bytes(with_dropout, whole, tmp_path):
    """kill -9 once a checkpoint is there: dropout of a pass depends on its place alone, not on draws before it."""
    output = tmp_path / "killed" / "denoiser.safetensors"
    process = started(train_command(output, with_dropout))
    wait_for(output.parent / "checkpoints" / "00000005.safetensors", process)
    process.kill()
    process.communicate()
    if checkpoints(output.parent):  # else it was through before the signal came
        assert checkpoints(output.parent)[-1] >= 5 and not output.exists()
    torch.rand(3)
    train(output, with_dropout)
    assert bytes_of(output.parent) == bytes_of(whole)
    assert checkpoints(output.parent) == []


def test_dropout_changes_what_a_teacher_learns(with_dropout, whole, tmp_path):
    numbers = with_dropout | {"network": with_dropout["network"] | {"dropout": 0.0}}
    dry = train(tmp_path / "denoiser.safetensors", numbers).parent
    one, other = (manifests.read_table(folder / "log.parquet")[0] for folder in (dry, whole))
    assert bytes_of(dry) != bytes_of(whole) and not one.equals(other)


def test_a_teacher_that_a_signal_stopped_continues_to_the_same_bytes(with_dropout, tmp_path, caplog):
    """So many updates that the signal comes in the middle; it writes a checkpoint and ends with status 75."""
    numbers = with_dropout | {"training": changed(with_dropout["training"], phases=[{"updates": 60}])}
    output = tmp_path / "stopped" / "denoiser.safetensors"
    process = started(train_command(output, numbers))
    wait_for(output.parent / "checkpoints" / "00000005.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in said, said
    (update,) = re.findall(r"stopped by SIGTERM at update (\d+) of 60: run again to continue", said)
    assert checkpoints(output.parent)[-1] == int(update) and not output.exists()
    caplog.set_level("INFO", logger="dmd")
    train(output, numbers)
    assert f"continuing at update {update} from" in caplog.text
    assert bytes_of(output.parent) == bytes_of(train(tmp_path / "whole" / "denoiser.safetensors", numbers).parent)


def test_a_damaged_checkpoint_of_a_teacher_falls_back_to_the_one_before(with_dropout, whole, tmp_path, caplog):
    caplog.set_level("INFO", logger="dmd")
    output = tmp_path / "stopped" / "denoiser.safetensors"
    full = output.parent / ".tmp-log.parquet"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space left"):
        train(output, with_dropout)
    assert checkpoints(output.parent) == [5, 10]
    newest = output.parent / "checkpoints" / "00000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    train(output, with_dropout)
    assert "ignoring checkpoint 00000010" in caplog.text and "continuing at update 5 from" in caplog.text
    assert bytes_of(output.parent) == bytes_of(whole)


def test_a_teacher_in_micro_batches_learns_nearly_the_same(teacher_file, teacher_numbers, tmp_path):
    training = changed(teacher_numbers["training"], compute={"micro_batch_size": 5, "gradient_checkpointing": True})
    train(tmp_path / "t", teacher_numbers | {"training": training})
    one, other = (tensor_files.load(path)[0] for path in (tmp_path / "t", teacher_file))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)


def test_mixture_teacher_is_the_exact_denoiser_of_its_dataset(tmp_path):
    teacher.run(output=tmp_path / "t", table=tmp_path / "log.parquet", kind="gaussian-mixture", dataset=MIXTURE)
    denoiser, metadata = loading.load_denoiser(tmp_path / "t")
    assert metadata["shape"] == [2, 1, 1] and metadata["num_classes"] == 0
    variance = 0.25 * 0.04 + 0.75 * 0.16 + 0.75 / 2  # within modes, and between them along one of two axes
    assert metadata["sigma_data"] == pytest.approx(variance**0.5)
    far = denoiser(torch.zeros(1, 2, 1, 1), torch.tensor([1e4]), torch.tensor([-1]))
    assert far.flatten().tolist() == pytest.approx([0.5, 0.0], abs=1e-4)  # the mean of the data


def test_log_has_a_row_per_update_and_none_of_a_teacher_that_is_given(teacher_file, tmp_path):
    table, _ = manifests.read_table(teacher_file.with_name("log.parquet"))
    assert table.column_names == ["update", "phase", "gradient_norm/student", "loss/denoising"]
    assert table["update"].to_pylist() == list(range(12)) and set(table["phase"].to_pylist()) == {0}
    assert all(0 < loss < 10 for loss in table["loss/denoising"].to_pylist())
    assert record.check(teacher_file.with_name("log.parquet"))
    teacher.run(output=tmp_path / "t", table=tmp_path / "log.parquet", kind="gaussian-mixture", dataset=MIXTURE)
    assert manifests.read_table(tmp_path / "log.parquet")[0].num_rows == 0


def test_a_diverging_teacher_stops_with_the_update_and_leaves_nothing(teacher_numbers, tmp_path):
    training = changed(teacher_numbers["training"], student={"learning_rate": 1e30}, schedule={"warmup": 0})
    advice = "lower teacher.training.optimisers.student.learning_rate"
    with pytest.raises(ValueError, match=rf"not finite at update \d+; no checkpoint was written yet: {advice}"):
        train(tmp_path / "t", teacher_numbers | {"training": training})
    assert not any(path.is_file() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kind": "guess"}, "kind 'guess'"),
        ({"network": None}, "'train' needs images, network and training"),
        ({"kind": "edm"}, "'edm', .* a source"),
        ({"kind": "gaussian-mixture"}, "'gaussian-mixture' a dataset"),
        ({"network": {"kind": "mlp", "width": 8}}, "layers"),
    ],
)
def test_teacher_refuses_numbers_that_do_not_fit(teacher_numbers, tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "t", teacher_numbers | other)
    assert not any(path.is_file() for path in tmp_path.iterdir())


def test_weights_of_another_architecture_are_refused_in_one_line(teacher_file, tmp_path):
    found, metadata = tensor_files.load(teacher_file)
    metadata["network"]["width"] = 16
    tensor_files.save(tmp_path / "t", found, metadata)
    with pytest.raises(ValueError, match="holds another architecture: size mismatch") as refused:
        loading.load_denoiser(tmp_path / "t")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="holds no 'best' weights"):
        loading.load_denoiser(teacher_file, weights="best")
