"""The log lines of a job, and its progress every ten seconds."""

import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from dmd.config import printing
from dmd.jobs import job_status, processes, signals
from dmd.jobs.job_status import Throughput

Item = TypeVar("Item")
STATUS_SECONDS = 10.0
_log = logging.getLogger("dmd")


def log(message: str) -> None:
    """A line on stderr and in the log file, of the first process alone."""
    if processes.rank() == 0:
        _log.info("%s", message)


class LogFormatter(logging.Formatter):
    """A line with the time for each message, in which text from outside is escaped and cut.

    The lines of a traceback are indented, so that none of them looks like a message. The command of the job, which the
    system limits, is not cut.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The text of a message."""
        message = record.getMessage()
        if getattr(record, "is_traceback", False):
            shown = "\n".join(f"    {line}" for line in printing.lines(message.rstrip()).split("\n"))
        elif getattr(record, "is_command", False):
            shown = printing.line(message, limit=len(message) + 1)
        else:
            shown = printing.line(message)
        return f"{self.formatTime(record, '%H:%M:%S')} {shown}"


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an uncaught exception on stderr; as `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printing.lines(text.rstrip()), file=sys.stderr)


class Progress:
    """Counts units of work; logs their number, rate and time left every ten seconds and at the end."""

    def __init__(self, *, total: int, unit: str, done: int = 0) -> None:
        """total: number of units in all; done: number of units finished before this job."""
        self._total, self._unit, self._before, self._count = total, unit, done, done
        self._images = 0
        self._begin = self._last = time.monotonic()

    def add(self, num: int = 1, *, images: int = 0) -> None:
        """Counts `num` more units; `images` is the number of images in them, if the unit is not images."""
        signals.check()
        self._count += num
        self._images += images
        if (now := time.monotonic()) - self._last < STATUS_SECONDS and self._count < self._total:
            return
        self._last = now
        seconds = max(now - self._begin, 1e-9)
        rate = (self._count - self._before) / seconds
        image_rate = self._images / seconds if self._images else None
        job_status.report(
            Throughput(count=self._count, total=self._total, unit=self._unit, rate=rate, image_rate=image_rate)
        )
        left = (self._total - self._count) / rate
        speed = f"{rate:.3g} {self._unit}/s" + (f", {image_rate:.4g} images/s" if image_rate else "")
        log(f"{self._count}/{self._total} {self._unit}, {speed}, {left:.0f} s left")


def progress(items: Iterable[Item], *, total: int, unit: str) -> Iterator[Item]:
    """Yields `items` and counts each in a `Progress`."""
    status = Progress(total=total, unit=unit)
    for item in items:
        yield item
        status.add()
