"""A kill at any moment loses time, never a byte of the result."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.workflow.conftest import ENVIRONMENT, command, digests, make

PATIENCE = 180.0  # seconds, on a machine that is busy with other things
GENERATOR = "results/small/distill/generator.safetensors"
BLOCK = "results/small/pairs/blocks/00000-00001.parquet"


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Snakemake in a process group of its own; what it says goes to snakemake.out."""
    line = command(folder, *words)
    with open(folder / "snakemake.out", "w") as output:
        return subprocess.Popen(line, stdout=output, stderr=output, env=ENVIRONMENT, cwd=folder, start_new_session=True)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for a moment that comes before the process ends."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.002)


def newest_checkpoint(folder: Path) -> int:
    """Updates that the newest checkpoint has seen, 0 without one."""
    found = (folder / "results/small/distill/checkpoints").glob("[0-9]*.safetensors")
    return max((int(path.stem) for path in found), default=0)


def test_generator_is_the_same_after_snakemake_was_killed_in_distill(finished: Path, broken: Path):
    seed = random.SystemRandom().randrange(10**6)
    after, pause = random.Random(seed).randrange(5, 45, 5), random.Random(seed).uniform(0.0, 0.1)
    print(f"seed {seed}: kill -9 {pause:.3f} s after the checkpoint of update {after}")
    shutil.rmtree(broken / "results/small/distill")
    snakemake = started(broken, "--cores", "2", GENERATOR)
    wait_until(lambda: newest_checkpoint(broken) >= after, snakemake)
    time.sleep(pause)
    os.killpg(snakemake.pid, signal.SIGKILL)
    assert snakemake.wait() == -signal.SIGKILL
    assert not (broken / GENERATOR).exists()
    make(broken, "--unlock")
    make(broken, "--cores", "2", GENERATOR)
    assert "continuing at update" in (broken / "results/small/logs/distill.log").read_text()
    assert digests(broken) == digests(finished)


def test_pairs_are_the_same_after_their_stage_was_killed(finished: Path, broken: Path):
    for path in [broken / BLOCK, *(broken / "results/small/pairs").glob("0000[01].tar")]:
        path.unlink()
    snakemake = started(broken, "--cores", "2", BLOCK)
    first = broken / "results/small/pairs/00000.tar"
    wait_until(first.exists, snakemake)
    written = first.stat().st_mtime_ns
    stages = [each for each in psutil.Process(snakemake.pid).children(recursive=True) if is_stage(each)]
    for process in stages:
        process.kill()
    assert stages and snakemake.wait() != 0
    assert not (broken / BLOCK).exists()
    make(broken, "--cores", "2", BLOCK)
    assert first.stat().st_mtime_ns == written  # a whole tar is kept
    assert digests(broken) == digests(finished)


def is_stage(process: psutil.Process) -> bool:
    """Whether a process is the Python of a stage."""
    try:
        return "dmd.stages.pairs" in process.cmdline()
    except psutil.NoSuchProcess:
        return False
