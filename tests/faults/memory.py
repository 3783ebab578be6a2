"""Faults of memory: an address space or a cgroup that grows no more."""

import contextlib
import os
import resource
from pathlib import Path

import psutil

from tests.faults.chain import Run
from tests.faults.fault import BEFORE, Fault

GROUPS = Path("/sys/fs/cgroup")


class AddressSpace(Fault):
    name = "no more address space"

    @property
    def wordless(self) -> bool:
        return self.when == BEFORE

    def strike(self, run: Run) -> bool:
        if (process := self.moment(run)) is None:
            return False
        more = self.chosen.randrange(1 << 30 if self.when == BEFORE else 4 << 20)
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            limit = process.memory_info().vms + more
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
            self.told = f"{more >> 10} KiB more"
        return run.ended() != 0  # else they sufficed


class OutOfMemory(Fault):
    """The kernel kills a stage: its cgroup has so many bytes from now on."""

    name = "OOM kill"
    group: Path | None = None

    @classmethod
    def missing(cls) -> str:
        if os.geteuid():
            return "needs root, to make a cgroup"
        return "" if _controller() else "needs cgroups that limit memory"

    def prepare(self) -> None:
        self.root, self.limit, self.events = _controller()
        self.group = self.root / f"dmd-faults-{os.getpid()}-{self.folder.name}"
        self.group.mkdir()

    def strike(self, run: Run) -> bool:
        if (process := self.moment(run)) is None:
            return False
        more = self.chosen.randrange(96 << 20 if self.when == BEFORE else 2 << 20)
        (self.group / self.limit).write_text(str(more))
        with contextlib.suppress(OSError):  # it has ended
            (self.group / "cgroup.procs").write_text(str(process.pid))
            self.told = f"{more >> 10} KiB more"
        run.ended()
        return self._killed() > 0  # else they sufficed

    def _killed(self) -> int:
        counts = dict(line.split() for line in (self.group / self.events).read_text().splitlines())
        return int(counts["oom_kill"])

    def recover(self) -> None:
        if self.group is not None and self.group.exists():
            for pid in (self.group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (self.root / "cgroup.procs").write_text(pid)
            self.group.rmdir()


def _controller() -> tuple[Path, str, str] | tuple[()]:
    """Root of the hierarchy, and its names for the limit and the counts of kills: cgroups of version 1 or 2."""
    if (GROUPS / "memory/memory.limit_in_bytes").exists():
        return GROUPS / "memory", "memory.limit_in_bytes", "memory.oom_control"
    control = GROUPS / "cgroup.subtree_control"
    if control.exists() and "memory" in control.read_text().split():
        return GROUPS, "memory.max", "memory.events"
    return ()
