"""The faults: each strikes a run of the chain once, and knows the way back that README tells a person."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

from tests.faults import chain
from tests.faults.chain import Run

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
MEMORY = Path("/sys/fs/cgroup/memory")  # of cgroups, version 1
SLOWEST = 3.0  # seconds into a stage at most, before the fault


class Fault(ABC):
    """One fault in one folder.

    Attributes:
        told: what exactly was done, for the report.
        unlock: snakemake itself was killed, so its lock is left.
        altered: files whose bytes are others now; verify comes first.
        skipped: jobs that are let pass.
    """

    name = ""

    def __init__(self, folder: Path, chosen: random.Random, whole: Path) -> None:
        """whole: the folder of the run that nothing disturbed."""
        self.folder, self.chosen, self.whole, self.told = folder, chosen, whole, ""
        self.unlock, self.altered = False, list[Path]()
        self.environment: dict[str, str] = {}
        self.skipped = 0

    @classmethod
    def missing(cls) -> str:
        """Why this fault cannot be tried on this machine, nothing where it can."""
        return ""

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Before the run begins."""

    @abstractmethod
    def strike(self, run: Run) -> bool:
        """Strikes; False if the run was over before."""

    def recover(self) -> None:  # noqa: B027
        """Removes the cause: space, permission, the right time. Called in any case, also after an interruption."""

    def moment(self, run: Run) -> psutil.Process | None:
        """A running stage at a random moment of its work; None once the run is over."""
        seen: set[int] = set()
        while run.alive:
            for each in run.stages():
                if each.pid not in seen and len(seen) >= self.skipped:
                    return each if _later(run, self.chosen.uniform(0.0, SLOWEST)) and each.is_running() else None
                seen.add(each.pid)
            time.sleep(0.02)
        return None


def _later(run: Run, seconds: float) -> bool:
    """Whether the run still goes on after a while."""
    deadline = time.monotonic() + seconds
    while run.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    return run.alive


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


class FullDisk(Fault):
    name = "full disk"

    def __init__(self, folder: Path, chosen: random.Random, whole: Path) -> None:
        super().__init__(folder, chosen, whole)
        self.results, self.mounted = folder / "results", False

    @classmethod
    def missing(cls) -> str:
        return "" if os.geteuid() == 0 and shutil.which("mount") else "needs root, to mount a small tmpfs"

    def prepare(self) -> None:
        kept = self.folder / "kept"
        self.results.rename(kept)
        self.results.mkdir()
        used, made = _pages(kept), _pages(self.whole / "results")
        room = used + int(self.chosen.uniform(0.0, 0.9) * (made - used))
        self.told = f"{(room - used) // 1024} KiB free at the start"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", self.results], check=True)
        self.mounted = True
        shutil.copytree(kept, self.results, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(kept)

    def strike(self, run: Run) -> bool:
        run.ended()
        return "no space left" in run.output.lower()

    def recover(self) -> None:
        if not self.mounted:
            return
        kept = self.folder / "kept"
        shutil.copytree(self.results, kept, symlinks=True)
        _unmount(self.results)
        self.mounted = False
        self.results.rmdir()
        kept.rename(self.results)


class ReadOnly(Fault):
    name = "read-only results"

    def __init__(self, folder: Path, chosen: random.Random, whole: Path) -> None:
        super().__init__(folder, chosen, whole)
        self.results, self.mounted = folder / "results", False

    missing = FullDisk.missing

    def prepare(self) -> None:
        subprocess.run(["mount", "--bind", self.results, self.results], check=True)
        self.mounted = True

    def strike(self, run: Run) -> bool:
        if self.moment(run) is None:
            return False
        deadline = time.monotonic() + 30
        while run.alive and time.monotonic() < deadline:  # busy while a file is open for writing
            line = ["mount", "-o", "remount,bind,ro", str(self.results)]
            if subprocess.run(line, capture_output=True).returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def recover(self) -> None:
        if self.mounted:
            _unmount(self.results)
            self.mounted = False


def _pages(folder: Path) -> int:
    """Bytes that a folder takes in a tmpfs: whole pages, and one for each name."""
    return 4096 * sum(1 + -(-path.lstat().st_size // 4096) for path in [*folder.rglob("*"), folder])


def _unmount(place: Path) -> None:
    for _ in range(100):
        if subprocess.run(["umount", place], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", place], check=True)


class Damage(Fault):
    """Bytes of an artifact or a record between two stages: altered before the run, which may not notice."""

    def prepare(self) -> None:
        path = self.chosen.choice([path for path in chain.artifacts(self.folder) if path.stat().st_size])
        kept = path.stat()
        content = bytearray(path.read_bytes())
        self.damage(content)
        path.write_bytes(content)
        if self.chosen.random() < 0.5:  # as a disk would do it; else as a person would
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        self.altered = [path.relative_to(self.folder)]
        self.told = f"{path.relative_to(self.folder / 'results')}{self.told}"

    def damage(self, content: bytearray) -> None:
        """Changes the content."""
        raise NotImplementedError

    def strike(self, run: Run) -> bool:
        return True


class FlippedByte(Damage):
    name = "a flipped byte"

    def damage(self, content: bytearray) -> None:
        place = self.chosen.randrange(len(content))
        content[place] ^= 1 << self.chosen.randrange(8)
        self.told = f", byte {place}"


class Truncated(Damage):
    name = "a truncated file"

    def damage(self, content: bytearray) -> None:
        size = self.chosen.randrange(len(content))
        del content[size:]
        self.told = f", {size} bytes left"


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
        if not words:
            assert "cannot be locked" in other.output or "LockException" in other.output, other.output[-500:]
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


class OutOfMemory(Fault):
    name = "out of memory"

    def prepare(self) -> None:
        self.group = MEMORY / f"dmd-faults-{os.getpid()}-{self.folder.name}"
        self.grouped = os.geteuid() == 0 and (MEMORY / "cgroup.procs").exists() and self.chosen.random() < 0.5

    def strike(self, run: Run) -> bool:
        process = None
        while run.alive and process is None:  # a stage that still grows
            process = next(iter(run.stages()), None) if self.chosen.random() < 0.3 else None
            time.sleep(0.02)
        if process is None:
            return False
        with contextlib.suppress(psutil.Error, ProcessLookupError, OSError):
            more = self.chosen.randrange(1, 120) << 20
            if self.grouped:
                self.group.mkdir(exist_ok=True)
                (self.group / "memory.limit_in_bytes").write_text(str(more))
                (self.group / "cgroup.procs").write_text(str(process.pid))
                self.told = f"a cgroup of {more >> 20} MiB more"
            else:
                limit = process.memory_info().vms + 8 * more
                resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
                self.told = f"RLIMIT_AS of {8 * more >> 20} MiB more"
        return run.ended() != 0  # else it sufficed

    def recover(self) -> None:
        if self.group.exists():
            for pid in (self.group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (MEMORY / "cgroup.procs").write_text(pid)
            self.group.rmdir()


KINDS: list[type[Fault]] = [
    KilledStage,
    KilledSnakemake,
    TerminatedStage,
    TerminatedSnakemake,
    Stopped,
    FullDisk,
    ReadOnly,
    FlippedByte,
    Truncated,
    Twice,
    Clock,
    OutOfMemory,
]
