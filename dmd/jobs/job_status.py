"""The status file of a job, which the job writes beside its log for others to read.

Beside `logs/distill.log` lies `logs/distill.status.json`, one `JobStatus`. A thread of the job rewrites it every
`REFRESH_SECONDS` with state `running`. The job writes `done`, `failed` or `stopped` when it ends. A job that is
killed or suspended writes nothing, and counts as `stopped` once its file is `SILENT_SECONDS` old. This works on every
machine that shares the folder, if clocks agree to about twenty seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from dmd.config import printing

REFRESH_SECONDS = 10.0
SILENT_SECONDS = 40.0

_throughput: Throughput | None = None  # the newest one of this process
_note: str | None = None  # the newest one of this process


class Throughput(BaseModel, frozen=True):
    """Progress and speed of a job: `count` of `total` units are done.

    Attributes:
        rate: units per second.
        image_rate: images per second; None if the unit is images, or no images are processed.
    """

    count: int
    total: int
    unit: str
    rate: float
    image_rate: float | None = None


class JobStatus(BaseModel, frozen=True):
    """The state of a job.

    Attributes:
        state: `waiting` and `done` also depend on its artifacts, see `dmd.jobs.experiment_progress`.
        time: when it was written.
        throughput: None before the first units are done.
        message: the error that it failed with, or what stopped it.
        note: what it last said about its work, such as whether a training goes well.
    """

    state: Literal["running", "failed", "stopped", "waiting", "done"]
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    throughput: Throughput | None = None
    message: str | None = None
    note: str | None = None

    @property
    def silent_seconds(self) -> float:
        """Seconds since it was written."""
        return max((datetime.now(UTC) - self.time).total_seconds(), 0.0)


def path_beside(log: Path) -> Path:
    """The status file of the job that writes `log`."""
    return log.with_name(f"{log.stem}.status.json")


def read(path: Path) -> JobStatus:
    """The status of a job whose artifacts are missing; `waiting` if it has no status file or ended without error."""
    try:
        status = JobStatus.model_validate_json(path.read_bytes())
    except OSError:
        return JobStatus(state="waiting")
    except ValueError:
        return JobStatus(state="stopped", message=f"stopped: {path} is damaged; run again")
    if status.state == "running" and status.silent_seconds > SILENT_SECONDS:
        return status.model_copy(update={"state": "stopped"})
    return status.model_copy(update={"state": "waiting"}) if status.state == "done" else status


def last_note(path: Path) -> str | None:
    """The note in a status file, whatever the state; None if there is none."""
    try:
        return JobStatus.model_validate_json(path.read_bytes()).note
    except (OSError, ValueError):
        return None


def note(text: str) -> None:
    """Sets the note for the next write of this process's status file, as one line."""
    global _note
    _note = printing.line(text)


def report(throughput: Throughput) -> None:
    """Sets the numbers for the next write of this process's status file."""
    global _throughput
    _throughput = throughput


@contextlib.contextmanager
def refreshed(log: Path | None, *, seconds: float = REFRESH_SECONDS) -> Iterator[None]:
    """While the block works the job is `running`; where the block ends without an error it is `done`.

    The file is written at once and then every `seconds`; never if `log` is None or not a regular file.
    """
    global _throughput, _note
    if log is None:
        yield
        return
    _throughput = _note = None
    _write(log, JobStatus(state="running"))
    ended = threading.Event()
    thread = threading.Thread(target=_refresh, args=(log, ended, seconds), name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    _write_unless_ended(log, "done")


def end(log: Path | None, state: Literal["failed", "stopped"], message: str) -> None:
    """Writes how a job ended, and `message` as one line."""
    if log is not None:
        _write(log, JobStatus(state=state, throughput=_throughput, message=printing.line(message), note=_note))


def _refresh(log: Path, ended: threading.Event, seconds: float) -> None:
    while not ended.wait(seconds):
        _write_unless_ended(log, "running")


def _write_unless_ended(log: Path, state: Literal["running", "done"]) -> None:
    """Leaves the file as it is where another process of the job has written that the job failed or was stopped."""
    with contextlib.suppress(OSError, ValueError):
        if JobStatus.model_validate_json(path_beside(log).read_bytes()).state in ("failed", "stopped"):
            return
    _write(log, JobStatus(state=state, throughput=_throughput, note=_note))


def _write(log: Path, status: JobStatus) -> None:
    """Replaces the status file, or overwrites it in place if the disk is full. Never makes a job fail."""
    path, text = path_beside(log), status.model_dump_json().encode() + b"\n"
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # several processes of a job may write
    try:
        if log.is_file():
            temporary.write_bytes(text)
            temporary.replace(path)
    except (OSError, MemoryError):
        with contextlib.suppress(OSError, MemoryError):
            temporary.unlink(missing_ok=True)
            with open(path, "r+b") as stream:
                stream.write(text)
                stream.truncate()
