"""What a job says while it works: lines of its log, and its progress every ten seconds."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from dmd.cluster import processes, signals

Item = TypeVar("Item")
STATUS_SECONDS = 10.0
_log = logging.getLogger("dmd")


def log(message: str) -> None:
    """A line on stderr and in the log file, of the first process alone."""
    if processes.rank() == 0:
        _log.info("%s", message)


class Progress:
    """A status line every ten seconds and at the end: rate and time left."""

    def __init__(self, *, total: int, unit: str, done: int = 0) -> None:
        """total: how many there are in all; done: how many were made before."""
        self._total, self._unit, self._before, self._count = total, unit, done, done
        self._images = 0
        self._begin = self._last = time.monotonic()

    def add(self, num: int = 1, *, images: int = 0) -> None:
        """Counts `num` more, which took `images` images where these are not what is counted."""
        signals.check()
        self._count += num
        self._images += images
        if (now := time.monotonic()) - self._last < STATUS_SECONDS and self._count < self._total:
            return
        self._last = now
        seconds = max(now - self._begin, 1e-9)
        rate = (self._count - self._before) / seconds
        left = (self._total - self._count) / rate
        pace = f", {self._images / seconds:.4g} images/s" if self._images else ""
        log(f"{self._count}/{self._total} {self._unit}, {rate:.3g} {self._unit}/s{pace}, {left:.0f} s left")


def progress(items: Iterable[Item], *, total: int, unit: str, done: int = 0) -> Iterator[Item]:
    """Yields `items` and counts each in a `Progress`."""
    status = Progress(total=total, unit=unit, done=done)
    for item in items:
        yield item
        status.add()
