"""Two runs at once: the second waits while the first makes files of the same experiments.

Snakemake removes the outputs of a job before it starts it. A run that was planned while another one worked would so
remove what the other has finished since then. With `--nolock` Snakemake itself keeps no two runs apart.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from dmd.provenance import record

LOCKS = Path(".snakemake", "runs")
_held = contextlib.ExitStack()  # until the process ends, even if it is killed


def hold(outputs: Iterable[str], say: Callable[[str], object]) -> bool:
    """Keeps other runs from the folders in results/ in which `outputs` lie, such as results/digits.

    Returns:
        Whether it waited for another run, so that this one is to be planned again.

    Raises:
        SystemExit: SIGTERM or SIGINT came while it waited.
    """
    waited = False
    folders = {Path(*path.parts[:2]) for path in map(Path, outputs) if path.parts[0] == "results"}
    for folder in sorted(folders):  # in the same order in all runs, so that no two wait for each other
        lock = LOCKS / folder.name
        try:
            _held.enter_context(record.exclusive(lock))
        except ValueError:
            with _stopped_by_signals():
                say(f"another run of the workflow makes files in {folder}: waiting for its end")
                _held.enter_context(record.exclusive(lock, wait=True))
            waited = True
    return waited


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Ends the process on SIGTERM and SIGINT with one message.

    Snakemake only notes SIGTERM until its jobs end, and would forget it when it plans again.

    Raises:
        SystemExit: on either signal.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit("error: stopped while waiting for another run")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
