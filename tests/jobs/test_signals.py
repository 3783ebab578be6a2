"""SIGTERM and SIGUSR1: distill writes a checkpoint and ends with status 75, and continued it ends in the same bytes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from dmd.stages import pairs
from tests.trainings import NAMES, changed, checkpoints, command, digests, distil

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PATIENCE = 120.0  # seconds, on a busy machine


def started(line: list[str], moment: Path) -> subprocess.Popen:
    """A stage that runs, and has come as far as to write a file."""
    process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not moment.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{moment} never came"
        time.sleep(0.001)
    return process


def stopped_at(process: subprocess.Popen, name: str) -> int:
    """The update that a stage says it was stopped at, after it ended."""
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == os.EX_TEMPFAIL, output
    (update, *_) = re.findall(rf"stopped by {name} at update (\d+) of \d+: run again to continue", output)
    assert "Traceback" not in output and "error" not in output, output
    return int(update)


def test_a_distillation_that_signals_stopped_continues_to_the_same_bytes(
    teacher_file, manifest_file, distill_section, distilled_folder, tmp_path, caplog
):
    line = command(tmp_path, changed(distill_section, grid_every=1), teacher=teacher_file, manifest=manifest_file)
    process = started(line, tmp_path / "grids" / "00000004.png")
    for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(each)
    update = stopped_at(process, "SIG(?:TERM|USR1)")
    assert checkpoints(tmp_path)[-1] == update and 4 <= update < 16
    assert not (tmp_path / NAMES[0]).exists() and not list(tmp_path.rglob(".tmp*"))
    caplog.set_level("INFO", logger="dmd")
    distil(tmp_path, distill_section, teacher=teacher_file, manifest=manifest_file)
    assert f"continuing at update {update} from" in caplog.text
    assert digests(tmp_path) == digests(distilled_folder)


def test_a_job_is_requeued_only_if_it_got_further(teacher_file, manifest_file, distill_section, tmp_path, monkeypatch):
    """One whose time limit ends before its first update would else be started again for ever."""
    monkeypatch.setitem(ENVIRONMENT, "SLURM_JOB_ID", "2147483647")
    line = command(tmp_path, changed(distill_section, grid_every=1), teacher=teacher_file, manifest=manifest_file)
    for moment, ending in (
        (tmp_path / "log.txt", "before the end: .*; not requeued, since it made no progress within its time limit"),
        (tmp_path / "grids" / "00000002.png", "at update .*; not requeued: scontrol requeue 2147483647: "),
    ):
        process = started(line, moment)
        while not moment.stat().st_size:  # of the log: the first line comes once signals are heard
            time.sleep(0.001)
        process.send_signal(signal.SIGUSR1)
        _, output = process.communicate(timeout=PATIENCE)
        assert process.returncode == os.EX_TEMPFAIL and re.search(f"stopped by SIGUSR1 {ending}", output), output


def test_pairs_that_a_signal_stopped_keep_whole_shards(teacher_file, pairs_numbers, tmp_path):
    block = tmp_path / "blocks" / "b.parquet"
    line = [sys.executable, "-m", "dmd.stages.pairs", "--teacher", str(teacher_file), "--output", str(block), "--spec"]
    process = started([*line, json.dumps(pairs_numbers | {"last": 400})], tmp_path / "00001.tar")
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in output, output
    assert output.splitlines()[-1].endswith("stopped by SIGTERM before the end: run again, finished files are kept")
    assert not block.exists() and not list(tmp_path.rglob(".tmp*"))
    before = (tmp_path / "00001.tar").stat()
    pairs.run(teacher=teacher_file, output=block, **pairs_numbers | {"last": 2})
    assert block.exists()
    after = (tmp_path / "00001.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


FINALISER = """
import os, signal
from dmd.jobs import signals

class Finalised:
    def __init__(self, act): self.act = act
    def __del__(self): self.act()

signals.listen(print)
try:
    Finalised(lambda: os.kill(os.getpid(), signal.SIGTERM))
    print("went on")
    signals.check()
except signals.Stopped as stop:
    print(stop)
Finalised(lambda: 1 / 0)
"""


def test_a_signal_in_a_finaliser_stops_later_and_without_a_traceback():
    """Python drops what a finaliser raises, and would print it; other errors of finalisers are still printed."""
    answer = subprocess.run([sys.executable, "-c", FINALISER], capture_output=True, text=True)
    assert answer.stdout.splitlines() == [
        "went on",
        "stopped by SIGTERM before the end: run again, finished files are kept",
    ]
    assert "Stopped" not in answer.stderr and "ZeroDivisionError" in answer.stderr
