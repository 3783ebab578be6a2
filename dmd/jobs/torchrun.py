"""A torchrun that passes SIGTERM and SIGUSR1 on to its workers and waits for them without a time limit.

Plain torchrun kills workers that do not end within half a minute of a signal; a checkpoint may take longer.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

import psutil
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dmd.jobs import processes, signals, slurm

LEFT_TO_TORCHRUN = "SIGINT,SIGHUP,SIGQUIT"


def main() -> None:
    """Runs torchrun with the command line's arguments; exits with the workers' status if a signal stopped them all."""
    for number in signals.SIGNALS:
        signal.signal(number, _pass_on)
    processes.forget_inherited()
    os.environ[processes.LAUNCHER] = str(os.getpid())  # the parent of all workers
    rendezvous = [] if "--standalone" in sys.argv else [f"--rdzv-conf=is_host={slurm.is_first_node()}"]
    try:
        run.main(["--signals-to-handle", LEFT_TO_TORCHRUN, *rendezvous, *sys.argv[1:]])
    except ChildFailedError as error:
        if all(failure.exitcode == signals.EXIT_STATUS for failure in error.failures.values()):
            sys.exit(signals.EXIT_STATUS)
        raise


def _pass_on(number: int, frame: FrameType | None) -> None:
    workers = psutil.Process().children()
    for worker in workers:
        worker.send_signal(number)
    logging.disable()  # torchrun would report the end of its workers as a failure
    if not workers:
        print(f"stopped by {signal.Signals(number).name} before its processes began: run again", file=sys.stderr)
        sys.exit(signals.EXIT_STATUS)


if __name__ == "__main__":
    main()
