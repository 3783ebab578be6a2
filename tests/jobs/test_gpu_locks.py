"""GPU leases: no card twice, all at once, freed by whatever ends a job. No GPU is needed: cards are names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmd.jobs import gpu_locks
from dmd.jobs.processes import LAUNCHER

HOLD = """
import os, sys
from pathlib import Path
from dmd.jobs import gpu_locks
cards = gpu_locks.lease(sys.argv[2].split(","), int(sys.argv[3]), folder=Path(sys.argv[1]), log=print)
line = "import sys; print(*sys.argv[1:], flush=True); sys.stdin.read()"
os.execv(sys.executable, [sys.executable, "-c", line, *cards])  # as a stage becomes torchrun
"""


STAGE = """
import os
from pathlib import Path
from dmd.config.training import TeacherTraining
from dmd.jobs import job

def run(*, output: Path, device: str, training: TeacherTraining | None = None) -> None:
    output.write_text(os.environ["CUDA_VISIBLE_DEVICES"])

job.main(run)
"""

TRAINING = {"processes": 2, "method": {"name": "denoising", "batch_size": 2, "phases": [{"updates": 1}]}}
TRAINING |= {"optimisers": {"student": {"learning_rate": 1e-3}}}
TWO = json.dumps({"device": "auto", "training": TRAINING})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that leases cards, prints them and holds them until it is ended."""
    running: list[subprocess.Popen[str]] = []

    def started(cards: str, num: int) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", HOLD, str(tmp_path), cards, str(num)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        return process

    yield started
    for process in running:
        process.kill()
        process.communicate()


def held(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_jobs_get_different_cards_and_a_killed_one_gives_its_back(start, tmp_path):
    jobs = [start("0,1,2", 1), start("0,1,2", 1)]
    leased = [held(job) for job in jobs]
    (free,) = {"0", "1", "2"} - {*leased[0], *leased[1]}
    waiting = start("0,1,2", 2)
    assert gpu_locks.lease(["0", "1", "2"], 1, folder=tmp_path, log=print) == [free]  # until this test process ends
    jobs[0].kill()
    jobs[0].wait()
    jobs[1].kill()
    jobs[1].wait()
    assert set(held(waiting)) == {*leased[0], *leased[1]}


def test_one_that_waits_for_several_holds_none(start):
    first = start("a,b", 1)
    taken = held(first)
    both, single = start("a,b", 2), start("a,b", 1)
    assert set(held(single)) == {"a", "b"} - set(taken)
    for job in (first, single):
        job.kill()
        job.wait()
    assert held(both) == ["a", "b"]


def test_waiting_is_said(start, tmp_path, monkeypatch):
    assert held(start("a", 1)) == ["a"]
    monkeypatch.setattr(gpu_locks, "STATUS_SECONDS", 0.0)

    def stop(line: str) -> None:
        raise InterruptedError(line)

    with pytest.raises(InterruptedError, match="waiting for 1 of the GPUs a for 0 s"):
        gpu_locks.lease(["a"], 1, folder=tmp_path, log=stop)


@pytest.mark.parametrize(
    ("environment", "cards"),
    [
        ({}, ["0", "1", "2"]),
        ({"SLURM_JOB_ID": "7"}, ["0", "1", "2"]),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "2, GPU-4f"}, ["2", "GPU-4f"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_cards_are_those_that_may_be_used(environment, cards):
    assert gpu_locks.shared_cards(environment, lambda: 3) == cards


@pytest.mark.parametrize("cards", ["", "3"])
def test_without_a_choice_nothing_changes(monkeypatch, cards):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    gpu_locks.lease_visible(1, log=print)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == cards


def test_leased_card_is_the_visible_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # the numbers are meant in the user's order
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gpu_locks.lease_visible(1, log=print)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5" and os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    with pytest.raises(ValueError, match="3 GPUs wanted, but there are 2: 5, 6"):
        gpu_locks.lease_visible(3, log=print)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    gpu_locks.lease_visible(1, log=print)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0" and os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("spec", "environment", "cards"),
    [
        ('{"device": "auto"}', {}, "6"),
        (TWO, {}, "6,7"),
        (TWO, {"RANK": "1", "WORLD_SIZE": "2"}, "6,7"),  # of another torchrun, whose shell started this one
        (TWO, {"RANK": "1", "WORLD_SIZE": "2", LAUNCHER: str(os.getpid())}, "5,6,7"),  # its parent has leased
        ('{"device": "cpu"}', {}, "5,6,7"),
    ],
)
def test_stage_leases_what_its_spec_needs(tmp_path, spec, environment, cards):
    assert gpu_locks.lease(["5"], 1, folder=tmp_path, log=print) == ["5"]  # until this test process ends
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "5,6,7", **environment}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("SLURM_JOB_ID", None)
    line = [sys.executable, "-c", STAGE, "--output", str(tmp_path / "seen"), "--spec", spec]
    subprocess.run(line, check=True, env=environment)
    assert (tmp_path / "seen").read_text() == cards
