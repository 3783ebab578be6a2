"""Signals that ask a stage to stop: SIGTERM, and SIGUSR1, which SLURM sends before a time limit if asked to."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = os.EX_TEMPFAIL  # 75: nothing is wrong, run again

_received: str | None = None
_deferred = False


class Stopped(BaseException):
    """A signal stopped the stage. Not an Exception, so that no library catches it with `except Exception`.

    Attributes:
        advanced: whether the stage made progress since it began, so that enough restarts will finish it.
    """

    def __init__(self, message: str, *, advanced: bool = False) -> None:
        super().__init__(message)
        self.advanced = advanced


def listen() -> None:
    """Makes the first signal raise `Stopped`: at once, or by `check` after a `deferred` block. Ignores later ones."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keeps signals from raising inside the block, which calls `received` wherever it can stop."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def received() -> str | None:
    """Name of the signal that came, None before one did."""
    return _received


def check() -> None:
    """Raises `Stopped` if a signal came. The handler does so, too, but in a finaliser Python drops what it raises."""
    if _received and not _deferred:
        raise Stopped(f"stopped by {_received} before the end: run again, finished files are kept")


def exit_status() -> int:
    """Returns the exit status, and ignores signals from now on, which could change it while Python exits."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return EXIT_STATUS


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None:
        _received = signal.Signals(number).name
        check()
