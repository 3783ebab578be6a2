"""A sign of life: while a stage works its log is touched, so that others can tell silence from death."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 10.0
_log = logging.getLogger("dmd")


@contextlib.contextmanager
def beating(path: Path | None, *, seconds: float = SECONDS) -> Iterator[None]:
    """Touches the log `path` every `seconds` until the block ends, and closes it with a line if that ends well.

    A process that was killed or stopped touches nothing, on whatever machine it ran. `dmd.cluster.progress` reads this.
    """
    if path is None:
        yield
        return
    begin, over = time.monotonic(), threading.Event()
    thread = threading.Thread(target=_beat, args=(path, over, seconds), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
        _log.info("done in %.1f s", time.monotonic() - begin)
    finally:
        over.set()
        thread.join()


def _beat(path: Path, over: threading.Event, seconds: float) -> None:
    while not over.wait(seconds):
        with contextlib.suppress(OSError):  # a log that somebody removed is no reason to stop
            os.utime(path)
