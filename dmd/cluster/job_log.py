"""What the log of a job says of it.

A log that ends in an error is that of a job that `failed`; one that ends with a signal, of one that was `stopped`. Else
the job is `running` if its log was touched in the last `SILENT_SECONDS` (a stage that works touches it every ten, see
`dmd.cluster.heartbeat`), and `stopped` if it was not: it was killed or suspended. A job without a log, or whose log
ended well, is `waiting`. That holds on any machine that sees the folder, if clocks agree to about twenty seconds.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

SILENT_SECONDS = 40.0
TAIL_SIZE = 16384  # bytes of a log that are looked at
_STATUS = re.compile(r"^\S+ (\d+)/(\d+) (\w+), (\S+) \w+/s(?:, (\S+) images/s)?, \S+ s left$", re.M)
_ERROR = re.compile(r"^\d\d:\d\d:\d\d (error(?: in process \d+ of \d+)?: .*)", re.M)
_STOPPED = re.compile(r"^\d\d:\d\d:\d\d (stopped by .*)", re.M)
_ENDED = re.compile(r"^\d\d:\d\d:\d\d done in ", re.M)


@dataclass(frozen=True)
class Pace:
    """The newest status line of a log: `count` of `total` units, and units and images per second."""

    count: int
    total: int
    unit: str
    rate: float
    images: float | None


@dataclass(frozen=True)
class Told:
    """What a log says.

    Attributes:
        silent: seconds since it was touched; None without a log.
        message: the error or the signal it ends with.
    """

    state: str
    pace: Pace | None = None
    silent: float | None = None
    message: str | None = None


def read(log: Path) -> Told:
    """What the log of a job says whose artifacts are not there."""
    try:
        with open(log, "rb") as stream:  # opened first: what a network file system then says of it is fresh
            found = os.fstat(stream.fileno())
            stream.seek(max(found.st_size - TAIL_SIZE, 0))
            text = stream.read().decode(errors="replace")
    except OSError:
        return Told("waiting")
    silent = max(time.time() - found.st_mtime, 0.0)
    if error := _ERROR.findall(text):
        return Told("failed", silent=silent, message=error[-1])
    if stopped := _STOPPED.findall(text):
        return Told("stopped", silent=silent, message=stopped[-1])
    if _ENDED.search(text):
        return Told("waiting", silent=silent)
    status = _STATUS.findall(text)
    return Told("running" if silent <= SILENT_SECONDS else "stopped", _pace(*status[-1]) if status else None, silent)


def _pace(count: str, total: str, unit: str, rate: str, images: str) -> Pace:
    number = float(rate)
    return Pace(
        int(count), int(total), unit, number if math.isfinite(number) else 0.0, float(images) if images else None
    )
