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
        SystemExit: SIGTERM came while it waited.
    """
    waited = False
    folders = {Path(*path.parts[:2]) for path in map(Path, outputs) if path.parts[0] == "results"}
    for folder in sorted(folders):  # in the same order in all runs, so that no two wait for each other
        lock = LOCKS / folder.name
        try:
            _held.enter_context(record.exclusive(lock))
        except ValueError:
            with _stopped_by_sigterm():
                say(f"another run of the workflow makes files in {folder}: waiting for its end")
                _held.enter_context(record.exclusive(lock, wait=True))
            waited = True
    return waited


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Ends the process on SIGTERM, which Snakemake only notes until its jobs end, and would forget when it plans again.

    Raises:
        SystemExit: on SIGTERM.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit("error: stopped while waiting for another run")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
