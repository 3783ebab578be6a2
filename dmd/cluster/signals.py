"""Signals that ask a stage to stop: SIGTERM, and SIGUSR1, which SLURM sends before a time limit if asked to."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = os.EX_TEMPFAIL  # 75: nothing is wrong, run again

_asked: str | None = None
_held = False


class Stopped(BaseException):
    """A signal ended the stage; no library takes it for a failure of its own.

    Attributes:
        advanced: whether it is known to be further than when it began, so that it ends if it is started often enough.
    """

    def __init__(self, message: str, *, advanced: bool = False) -> None:
        super().__init__(message)
        self.advanced = advanced


def listen() -> None:
    """From now on the first signal raises `Stopped`, or is noted where `held`; those after it change nothing."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal is noted: the block looks at `asked` where it can stop."""
    global _held
    _held = True
    try:
        yield
    finally:
        _held = False


def asked() -> str | None:
    """Name of the signal that came, None before one did."""
    return _asked


def check() -> None:
    """Raises `Stopped` if a signal came that is not held: what its handler raised may have been lost in a finaliser."""
    if _asked and not _held:
        raise Stopped(f"stopped by {_asked} before the end: run again, what is whole is kept")


def status() -> int:
    """The exit status; while Python itself ends, where its handlers are gone, no signal makes it another."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return EXIT_STATUS


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is None:
        _asked = signal.Signals(number).name
        check()
