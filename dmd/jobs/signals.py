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
    """A signal ended the stage. No Exception, so that no library catches it as an error of its own.

    Attributes:
        advanced: whether the stage is further than when it began, so that it ends if it is started often enough.
    """

    def __init__(self, message: str, *, advanced: bool = False) -> None:
        super().__init__(message)
        self.advanced = advanced


def listen() -> None:
    """From now on the first signal raises `Stopped`, at once or after a block of `deferred`; later ones do nothing."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block a signal raises nothing: the block asks for it with `received` where it can stop."""
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
    """Raises `Stopped` if a signal came. Its handler does so, too, but Python loses what is raised in a finaliser."""
    if _received and not _deferred:
        raise Stopped(f"stopped by {_received} before the end: run again, finished files are kept")


def exit_status() -> int:
    """The exit status. From now on signals are ignored: one that comes while Python ends would change it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return EXIT_STATUS


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None:
        _received = signal.Signals(number).name
        check()
