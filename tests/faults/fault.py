"""What all faults share: when they strike, what they tell, and the way back that docs/outputs.md tells a person."""

import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.faults import chain
from tests.faults.chain import Run, Times

EARLY = 0.2  # share of faults that strike a stage while it loads what it needs, before its log is there
BEFORE, DURING, AFTER, BETWEEN = "before the work", "during the work", "after the work", "between stages"


class Fault(ABC):
    """One fault in one folder.

    Attributes:
        told: what exactly was done, for the report.
        stage: name of the log of the stage that runs when the fault strikes.
        when: where in that stage.
        unlock: snakemake itself was killed, so its lock is left.
        altered: files whose bytes are others now; verify comes first.
        skipped: jobs that are let pass.
        beside: what another run in the same folder said.
    """

    name = ""

    def __init__(self, folder: Path, chosen: random.Random, whole: Path, times: Mapping[str, Times]) -> None:
        """whole: the folder of the run that nothing disturbed; times: of its stages."""
        self.folder, self.chosen, self.whole, self.times = folder, chosen, whole, times
        self.told = self.stage = self.when = self.beside = ""
        self.unlock, self.altered = False, list[Path]()
        self.environment: dict[str, str] = {}
        self.skipped = 0

    @classmethod
    def missing(cls) -> str:
        """Why this fault cannot be tried on this machine, nothing where it can."""
        return ""

    @property
    def wordless(self) -> bool:
        """Whether a stage may end in a traceback: only where the interpreter cannot even load what it needs."""
        return False

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Before the run begins."""

    @abstractmethod
    def strike(self, run: Run) -> bool:
        """Strikes; False if the run was over before."""

    def recover(self) -> None:  # noqa: B027
        """Removes the cause: space, permission, the right time. Called in any case, also after an interruption."""

    def moment(self, run: Run) -> psutil.Process | None:
        """A running stage at a random moment of its work, or of its start; None once the run is over."""
        seen: set[int] = set()
        while run.alive:
            for each in run.stages():
                if each.pid not in seen and len(seen) >= self.skipped and (log := chain.log_of(each, self.folder)):
                    self._wait(each, log)
                    self._note(log)
                    return each if run.alive and each.is_running() else None
                seen.add(each.pid)
            time.sleep(0.02)
        return None

    def _wait(self, process: psutil.Process, log: Path) -> None:
        times = self.times[log.stem]
        early, share = self.chosen.random() < EARLY, self.chosen.random()
        deadline = time.monotonic() + share * times.start if early else float("inf")
        while _lives(process) and not log.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not early:
            deadline = time.monotonic() + share * times.work
            while _lives(process) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _note(self, log: Path) -> None:
        self.stage, self.when = log.stem, BEFORE
        with contextlib.suppress(FileNotFoundError):
            self.when = AFTER if " done in " in log.read_text(errors="replace") else DURING


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
