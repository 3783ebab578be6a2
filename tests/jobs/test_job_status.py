"""The status file of a job: what a job that works, ends well, fails or falls silent leaves for others to read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dmd.jobs import job_status, reporting
from dmd.jobs.job_status import JobStatus, Throughput, path_beside, read, refreshed

HALF = Throughput(count=5, total=10, unit="updates", rate=0.5, image_rate=32.0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "distill.log"
    path.touch()
    return path


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(log: Path, state: str, *, age: float = 0.0, throughput: Throughput | None = None) -> None:
    status = JobStatus(state=state, time=datetime.now(UTC) - timedelta(seconds=age), throughput=throughput)
    path_beside(log).write_text(status.model_dump_json())


def test_a_job_that_works_says_so_with_its_newest_numbers(log: Path, monkeypatch):
    monkeypatch.setattr(reporting, "STATUS_SECONDS", 0.0)
    with refreshed(log, seconds=0.01):
        assert (read(path_beside(log)).state, read(path_beside(log)).throughput) == ("running", None)
        progress = reporting.Progress(total=50, unit="updates", done=10)
        progress.add(5, images=320)
        wait_for(lambda: read(path_beside(log)).throughput is not None)
        newest = read(path_beside(log)).throughput
        assert newest is not None and (newest.count, newest.total, newest.unit) == (15, 50, "updates")
        assert newest.image_rate == pytest.approx(64 * newest.rate, rel=1e-6)
        progress.add(7)
        wait_for(lambda: read(path_beside(log)).throughput.count == 22)
        reporting.Progress(total=3, unit="batches").add()
        wait_for(lambda: read(path_beside(log)).throughput.unit == "batches")
        assert read(path_beside(log)).throughput.image_rate is None
    assert json.loads(path_beside(log).read_text())["state"] == "done"
    assert read(path_beside(log)).state == "waiting"  # it ended well, but what it made is not there


def test_a_note_is_one_line_and_stays_when_the_job_has_ended(log: Path):
    path = path_beside(log)
    with refreshed(log, seconds=0.01):
        assert job_status.last_note(path) is None
        job_status.note("goes well\nso far")
        wait_for(lambda: job_status.last_note(path) is not None)
    note = job_status.last_note(path)
    assert note is not None and note.startswith("goes well") and "\n" not in note
    job_status.end(log, "failed", "error: no")
    assert job_status.last_note(path) == note
    with refreshed(log, seconds=60.0):  # the next job begins without
        assert job_status.last_note(path) is None
    assert job_status.last_note(path.with_name("none.json")) is None


def test_a_job_that_counts_nothing_is_refreshed_until_it_ends(log: Path):
    path = path_beside(log)
    with refreshed(log, seconds=0.01):
        first = path.stat().st_mtime_ns
        wait_for(lambda: path.stat().st_mtime_ns > first)
        path.unlink()
        wait_for(path.exists)  # one that somebody removed is written anew
    last = path.stat().st_mtime_ns
    time.sleep(0.1)
    assert path.stat().st_mtime_ns == last
    assert sorted(each.name for each in log.parent.iterdir()) == ["distill.log", "distill.status.json"]


def test_numbers_of_an_earlier_job_of_the_process_are_not_those_of_the_next(log: Path):
    job_status.report(HALF)
    with refreshed(log):
        pass
    assert JobStatus.model_validate_json(path_beside(log).read_text()).throughput is None


def test_a_silent_job_is_stopped_and_one_without_a_file_waits(log: Path):
    for age, state in ((job_status.SILENT_SECONDS - 5, "running"), (job_status.SILENT_SECONDS + 1, "stopped")):
        write(log, "running", age=age, throughput=HALF)
        status = read(path_beside(log))
        assert (status.state, status.throughput) == (state, HALF)
        assert status.silent_seconds == pytest.approx(age, abs=1)
    write(log, "failed", age=1e6)
    assert read(path_beside(log)).state == "failed"
    assert read(log.with_name("none.status.json")).state == "waiting"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"state": "asleep"}', b"\xff"])
def test_a_damaged_file_is_one_message(log: Path, text: bytes):
    path_beside(log).write_bytes(text)
    status = read(path_beside(log))
    assert (status.state, status.message) == ("stopped", f"stopped: {path_beside(log)} is damaged; run again")


def test_a_job_that_fails_is_not_done(log: Path):
    with pytest.raises(ValueError, match="this number"), refreshed(log):
        job_status.report(HALF)
        raise ValueError("this number")
    job_status.end(log, "failed", "error: this number\nand a second line")
    status = read(path_beside(log))
    assert (status.state, status.throughput) == ("failed", HALF)
    assert status.message == r"error: this number\nand a second line"


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_what_another_process_of_the_job_wrote_of_its_end_stays(log: Path, state: str):
    line = f"import pathlib; from dmd.jobs import job_status as s; s.end(pathlib.Path({str(log)!r}), {state!r}, 'm')"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with refreshed(log, seconds=0.01):
        subprocess.run([sys.executable, "-c", line], check=True, env=environment)
        time.sleep(0.1)
        assert read(path_beside(log)).state == state
    assert (read(path_beside(log)).state, read(path_beside(log)).message) == (state, "m")
    with refreshed(log):
        assert read(path_beside(log)).state == "running"  # the next job begins anew


def test_a_disk_without_room_for_a_second_file_has_the_newest_status(log: Path, monkeypatch):
    write(log, "running", age=1e6)
    path_beside(log).write_text(path_beside(log).read_text() + " " * 1000)

    def no_room(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_room)
    job_status.end(log, "failed", "error: no space left")
    assert read(path_beside(log)).message == "error: no space left"
    path_beside(log).unlink()
    job_status.end(log, "failed", "error: no space left")
    assert list(log.parent.iterdir()) == [log]


def test_nothing_is_written_beside_a_log_that_is_no_file(tmp_path: Path):
    (tmp_path / "pipe").mkdir()
    with refreshed(tmp_path / "pipe"), refreshed(None):
        job_status.end(tmp_path / "pipe", "failed", "error")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_the_refresh_is_well_within_the_silence_that_is_borne():
    assert job_status.REFRESH_SECONDS * 3 < job_status.SILENT_SECONDS
