"""The faults of a campaign: those of processes and of time are here, those of disks and of memory beside."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from tests.faults import chain
from tests.faults.chain import Run
from tests.faults.disks import FlippedByte, FullDisk, PowerCut, ReadOnly, Truncated
from tests.faults.fault import Fault
from tests.faults.memory import AddressSpace, OutOfMemory

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class KilledStage(Fault):
    name = "SIGKILL of a stage"
    signal = signal.SIGKILL

    def strike(self, run: Run) -> bool:
        process = self.moment(run)
        with contextlib.suppress(psutil.Error):
            if process is not None:
                self.told = " ".join(process.cmdline()[1:3])
                process.send_signal(self.signal)
                return True
        return False


class TerminatedStage(KilledStage):
    name = "SIGTERM of a stage"
    signal = signal.SIGTERM


class KilledSnakemake(Fault):
    name = "SIGKILL of snakemake"

    def strike(self, run: Run) -> bool:
        if self.moment(run) is None or not run.alive:
            return False
        self.unlock = True
        if self.chosen.random() < 0.5:
            self.told = "with its jobs"
            os.killpg(run.process.pid, signal.SIGKILL)
        else:
            self.told = "alone, its job goes on"
            run.process.kill()
        run.process.wait()
        return True


class TerminatedSnakemake(Fault):
    name = "SIGTERM of snakemake"

    def strike(self, run: Run) -> bool:
        if self.moment(run) is None or not run.alive:
            return False
        run.process.terminate()
        return True


class Stopped(Fault):
    name = "SIGSTOP, then SIGCONT"

    def strike(self, run: Run) -> bool:
        process = self.moment(run)
        if process is None:
            return False
        whom = process if self.chosen.random() < 0.5 else psutil.Process(run.process.pid)
        seconds = self.chosen.uniform(0.5, 6.0)
        with contextlib.suppress(psutil.Error):
            self.told = f"{whom.name()} for {seconds:.1f} s"
            whom.suspend()
            time.sleep(seconds)
            whom.resume()
            return True
        return False


class Twice(Fault):
    name = "two snakemakes at once"

    def strike(self, run: Run) -> bool:
        if self.moment(run) is None:
            return False
        words = ["--nolock"] if self.chosen.random() < 0.6 else []
        self.told = "the second without a lock" if words else "the second refused by the lock"
        other = Run(self.folder, "--cores", "2", *words, chain.FID)
        try:
            other.ended()
            run.ended()
        finally:
            other.kill()
            self.beside = other.output
        if "Nothing to be done" in self.beside and "another run of the workflow" not in self.beside:
            return False  # the first had ended; else the second has waited for it
        if not words:
            assert "cannot be locked" in self.beside or "LockException" in self.beside, self.beside[-500:]
        return True


class Clock(Fault):
    name = "a jump of the clock"

    @classmethod
    def missing(cls) -> str:
        return "" if FAKETIME else "needs libfaketime (apt-get install libfaketime)"

    def prepare(self) -> None:
        self.file = self.folder / "clock"
        self.file.write_text("+0\n")
        self.environment = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until it looks into the file again
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set does not move that one
            "NO_FAKE_STAT": "1",
        }

    def strike(self, run: Run) -> bool:
        if self.moment(run) is None:
            return False
        self.jumped, self.seconds = time.time(), self.chosen.choice((-1, 1)) * self.chosen.randrange(60, 200_000)
        self.told = f"{self.seconds:+d} s"
        self.file.write_text(f"{self.seconds:+d}\n")
        run.ended()
        for path in (self.folder / "results").rglob("*"):  # what the file system's clock would have written
            found = path.stat()
            if path.is_file() and found.st_mtime > self.jumped:
                os.utime(path, (found.st_atime + self.seconds, found.st_mtime + self.seconds))
        return True


KINDS: list[type[Fault]] = [
    KilledStage,
    KilledSnakemake,
    TerminatedStage,
    TerminatedSnakemake,
    Stopped,
    FullDisk,
    ReadOnly,
    PowerCut,
    FlippedByte,
    Truncated,
    Twice,
    Clock,
    AddressSpace,
    OutOfMemory,
]
