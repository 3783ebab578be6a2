"""Several processes of one distillation: the same training as one process, killed and continued, one message."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from dmd.data import manifest as manifests
from dmd.provenance import tensor_files
from tests.trainings import NAMES, changed, checkpoints, command, digests

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.slow


def killed_after(line: list[str], update: int, folder: Path) -> None:
    """Starts a run and kills all its processes as soon as the picture of an update is there."""
    process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (folder / "grids" / f"{update:08d}.png").exists():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_processes_train_as_one_and_continue_after_a_kill(
    teacher_file, manifest_file, distill_section, distilled_folder, tmp_path
):
    """Five pairs make parts of two and three; the noise does not know how many processes there are."""
    line = command(tmp_path, changed(distill_section, processes=2), teacher=teacher_file, manifest=manifest_file)
    killed_after(line, 8, tmp_path)
    assert not (tmp_path / NAMES[0]).exists()
    answer = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert (
        "continuing at update" in answer.stderr
        and answer.stderr.count("12 pairs") == answer.stderr.count("16 updates in 3 phases") == 1
    )
    mine, alone = (tensor_files.load(folder / NAMES[0])[0] for folder in (tmp_path, distilled_folder))
    table, expected = (manifests.read_table(folder / NAMES[1])[0] for folder in (tmp_path, distilled_folder))
    assert mine.keys() == alone.keys() and table.column_names == expected.column_names
    for name, value in alone.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=2e-4)
    for name in table.column_names:
        found, wanted = (torch.from_numpy(each[name].to_numpy().copy()).double() for each in (table, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4, equal_nan=True)
    assert not (tmp_path / "checkpoints").exists()
    begun = tensor_files.load(teacher_file)[0]
    moved = [(value - begun[f"ema.{name.partition('.')[2]}"]).abs().max() for name, value in alone.items()]
    assert max(moved) > 4e-3  # the tolerance is far below what was learnt


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("whom", ["torchrun", "the second worker"])
def test_two_processes_stop_after_the_same_update_and_continue_to_the_same_bytes(
    teacher_file, manifest_file, distill_section, tmp_path, whom, sharded
):
    keys = {"processes": 2, "grid_every": 1, "checkpoint_every": 1000, "regression_batch_size": 4}
    section = changed(distill_section, **keys, compute={"shard_parameters": sharded})
    files = {"teacher": teacher_file, "manifest": manifest_file}
    line = command(tmp_path / "stopped", section, **files)
    process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "stopped" / "grids" / "00000004.png").exists():
        time.sleep(0.001)
    if whom == "torchrun":
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
    else:
        second = [each for each in psutil.Process(process.pid).children() if each.environ()["RANK"] == "1"]
        second[0].send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in said and "rror" not in said, said
    (update,) = re.findall(r"stopped by [\w ]+ at update (\d+) of 16: run again to continue", said)
    assert checkpoints(tmp_path / "stopped") == [int(update)]
    whole = command(tmp_path / "whole", section, **files)
    for each in (line, whole):
        assert subprocess.run(each, env=ENVIRONMENT, stderr=subprocess.DEVNULL).returncode == 0
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.mark.parametrize(("shared_noise", "match_pairs"), [(True, False), (True, True), (False, True)])
def test_two_processes_with_micro_batches_train_as_one(
    teacher_file, manifest_file, distill_section, tmp_path, shared_noise, match_pairs
):
    """Micro batches of two and one; each process has its part of x, and the pairs of its part of x_ref alone."""
    keys = {"shared_noise": shared_noise, "match_pairs": match_pairs, "compute": {"micro_batch_size": 2}}
    for name, processes in (("alone", 1), ("two", 2)):
        section = changed(distill_section, **keys, processes=processes)
        line = command(tmp_path / name, section, teacher=teacher_file, manifest=manifest_file)
        answer = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
    two, alone = (tensor_files.load(tmp_path / name / NAMES[0])[0] for name in ("two", "alone"))
    begun = tensor_files.load(teacher_file)[0]
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)
    assert max((value - begun[f"ema.{name.partition('.')[2]}"]).abs().max() for name, value in alone.items()) > 4e-3
    table, expected = (manifests.read_table(tmp_path / name / NAMES[1])[0] for name in ("two", "alone"))
    for name in expected.column_names:
        found, wanted = (torch.from_numpy(each[name].to_numpy().copy()).double() for each in (table, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("adapter", [None, {"rank": 3, "alpha": None, "targets": None}], ids=["whole", "adapters"])
def test_processes_that_share_parameters_train_as_one_and_continue_after_a_kill(
    teacher_file, manifest_file, distill_section, tmp_path, adapter
):
    """The generator's file is gathered from both; so is a checkpoint, and each takes its part of it."""
    found = []
    for name, keys in {"one": {}, "two": {"processes": 2, "compute": {"shard_parameters": True}}}.items():
        section = changed(distill_section, **keys, regression_batch_size=4, adapter=adapter)
        line = command(tmp_path / name, section, teacher=teacher_file, manifest=manifest_file)
        killed_after(line, 8, tmp_path / name)
        answer = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        assert "continuing at update" in answer.stderr
        found.append(tensor_files.load(tmp_path / name / NAMES[0])[0])
    alone, mine = found
    assert mine.keys() == alone.keys() and any(name.startswith("lora.") for name in mine) == bool(adapter)
    for name, value in alone.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=2e-4)


def test_one_message_when_a_process_fails(teacher_file, manifest_file, distill_section, tmp_path):
    """Numbers that are not finite end all processes; the log names the update once."""
    section = changed(distill_section, processes=2, student={"learning_rate": 1e30})
    line = command(tmp_path, section, teacher=teacher_file, manifest=manifest_file)
    answer = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert answer.returncode != 0 and not (tmp_path / NAMES[0]).exists()
    log = (tmp_path / "log.txt").read_text()
    (message,) = [text for text in log.splitlines() if " error" in text]
    assert "of 2: " in message and "not finite at update" in message
    assert answer.stderr.count("not finite at update") == 1
