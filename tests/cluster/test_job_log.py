"""What a log tells of a job: lines that stages really write, and how long ago its process gave a sign of life."""

import logging
import os
import time
from pathlib import Path

import pytest

from dmd.cluster import heartbeat, job_log, reporting
from dmd.cluster.job_log import Pace


@pytest.fixture
def log(tmp_path: Path):
    """A log file as stages write it."""
    path, logger = tmp_path / "reporting.log", logging.getLogger("dmd")
    level, handler = logger.level, logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield path
    logger.removeHandler(handler)
    handler.close()
    logger.setLevel(level)


def test_pace_is_that_of_the_newest_status_line(log: Path, monkeypatch):
    monkeypatch.setattr(reporting, "STATUS_SECONDS", 0.0)
    status = reporting.Progress(total=50, unit="updates", done=10)
    status.add(5, images=320)
    reporting.log("a line of another kind: 3/4 of it")
    found = job_log.read(log)
    assert found.state == "running" and found.pace is not None and found.pace.images is not None
    assert (found.pace.count, found.pace.total, found.pace.unit) == (15, 50, "updates")
    assert found.pace.images == pytest.approx(64 * found.pace.rate, rel=0.01)
    status.add(7)
    assert job_log.read(log).pace.count == 22
    batches = reporting.Progress(total=3, unit="batches")
    batches.add()
    newest = job_log.read(log).pace
    assert isinstance(newest, Pace) and (newest.unit, newest.images) == ("batches", None)


def test_a_silent_log_is_that_of_a_stopped_job_and_a_missing_one_of_a_job_that_waits(log: Path, tmp_path: Path):
    reporting.log("begun")
    assert job_log.read(log).state == "running"
    for age, state in ((job_log.SILENT_SECONDS - 5, "running"), (job_log.SILENT_SECONDS + 1, "stopped")):
        os.utime(log, (time.time() - age,) * 2)
        assert job_log.read(log).state == state
    assert job_log.read(tmp_path / "none.log").state == "waiting"


def test_heartbeat_touches_the_log_of_a_stage_that_says_nothing_and_closes_it(log: Path):
    reporting.log("begun")
    os.utime(log, (0, 0))
    with heartbeat.beating(log, seconds=0.01):
        deadline = time.monotonic() + 30
        while log.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job_log.read(log).state == "running"
    assert job_log.read(log).state == "waiting"  # it ended well, but what it made is not there
    os.utime(log, (0, 0))
    time.sleep(0.1)
    assert log.stat().st_mtime == 0


def test_a_stage_that_fails_is_not_closed_as_done(log: Path):
    with pytest.raises(ValueError, match="this number"), heartbeat.beating(log):
        raise ValueError("this number")
    logging.getLogger("dmd").error("error in process %d of %d: %s", 1, 2, "this number")
    found = job_log.read(log)
    assert (found.state, found.message) == ("failed", "error in process 1 of 2: this number")


def test_heartbeat_is_well_within_the_silence_that_is_borne():
    assert heartbeat.SECONDS * 3 < job_log.SILENT_SECONDS
