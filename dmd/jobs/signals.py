"""Signals that ask a stage to stop: SIGTERM, and SIGUSR1, which SLURM sends before a time limit if asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = os.EX_TEMPFAIL  # 75: nothing is wrong, run again
STUCK_SECONDS = 1.0  # that a library may take, after a signal, to return to Python

_noticed = threading.Event()
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


def listen(end: Callable[[Stopped], None]) -> None:
    """Makes the first signal raise `Stopped`: at once, or by `check` after a `deferred` block. Ignores later ones.

    Python raises between two of its own steps. Where a library makes one long step (it decodes a large image, or looks
    through gigabytes of weights), a thread ends the process after `STUCK_SECONDS`, unless in a `deferred` block.

    Args:
        end: says how the process ended and removes what is half-written; called in that thread.
    """
    for number in SIGNALS:
        signal.signal(number, _note)
    report = sys.unraisablehook  # prints what Python drops in a finaliser; `check` raises a `Stopped` again
    sys.unraisablehook = lambda dropped: None if dropped.exc_type is Stopped else report(dropped)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_if_stuck, args=(reader, end), name="signals", daemon=True).start()


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
    """Raises `Stopped` if a signal came. The handler does so, too, but Python drops what it raises in a finaliser."""
    if _received and not _deferred:
        raise _stopped(_received)


def exit_status() -> int:
    """Returns the exit status, and ignores signals from now on, which could change it while Python exits."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return EXIT_STATUS


def _stopped(name: str) -> Stopped:
    return Stopped(f"stopped by {name} before the end: run again, finished files are kept")


def _end_if_stuck(reader: int, end: Callable[[Stopped], None]) -> None:
    """Waits for the first of `SIGNALS`, and for `_note`, which Python calls in the main thread."""
    global _received
    while (number := os.read(reader, 1)[0]) not in SIGNALS:
        pass
    ours = signal.getsignal(number) is _note
    if ours and not _noticed.wait(STUCK_SECONDS) and not _deferred:
        _received = signal.Signals(number).name
        try:
            end(_stopped(_received))
        finally:
            os._exit(EXIT_STATUS)


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    _noticed.set()
    if _received is None:
        _received = signal.Signals(number).name
        check()
