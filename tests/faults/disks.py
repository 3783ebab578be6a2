"""Faults of disks: full, read-only, gone in the midst of writing, and bytes that are others than were written."""

import os
import shutil
import signal
import subprocess
import time
from abc import abstractmethod
from pathlib import Path

from tests.faults import chain
from tests.faults.chain import Run
from tests.faults.fault import BETWEEN, DURING, Fault

ROOM = 64 << 20  # bytes of a disk that is not to be full


class Mounted(Fault):
    """results/ is a file system of its own during the run."""

    mounted = False

    @classmethod
    def missing(cls) -> str:
        return "" if os.geteuid() == 0 and shutil.which("mount") else "needs root, to mount a file system"

    def prepare(self) -> None:
        self.results, self.kept = self.folder / "results", self.folder / "kept"
        self.results.rename(self.kept)
        self.results.mkdir()
        self.mount()
        self.mounted = True
        shutil.copytree(self.kept, self.results, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(self.kept)

    @abstractmethod
    def mount(self) -> None:
        """Mounts results/."""

    def recover(self) -> None:
        if not self.mounted:
            return
        shutil.copytree(self.results, self.kept, symlinks=True, ignore=shutil.ignore_patterns("lost+found"))
        _unmount(self.results)
        self.mounted = False
        self.results.rmdir()
        self.kept.rename(self.results)


class FullDisk(Mounted):
    name = "full disk"

    def mount(self) -> None:
        used, made = _pages(self.kept), _pages(self.whole / "results")
        room = used + int(self.chosen.uniform(0.0, 0.9) * (made - used))
        self.told = f"{(room - used) // 1024} KiB free at the start"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", self.results], check=True)

    def strike(self, run: Run) -> bool:
        run.ended()
        lines = [line for line in run.output.splitlines() if "no space left" in line.lower()]
        self.when = DURING if any(" error: " in line for line in lines) else BETWEEN
        return bool(lines)


class ReadOnly(Mounted):
    """ext4 that meets an error, as `errors=remount-ro` asks: from then on every write ends with EROFS, also that to a
    file which is open (`mount -o remount,ro` refuses while one is). What no fsync has sent to the disk is lost.
    """

    name = "disk becomes read-only"

    @classmethod
    def missing(cls) -> str:
        tools = ("mkfs.ext4", "e2fsck", "losetup")
        return super().missing() or next((f"needs {tool}" for tool in tools if not shutil.which(tool)), "")

    def mount(self) -> None:
        self.disk = self.folder / "disk"
        with open(self.disk, "wb") as stream:
            stream.truncate(ROOM)
        subprocess.run(["mkfs.ext4", "-qF", self.disk], check=True)
        self._mount()

    def prepare(self) -> None:
        super().prepare()
        subprocess.run(["sync", "--file-system", self.results], check=True)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self.disk, self.results], check=True)

    def strike(self, run: Run) -> bool:
        line = ["findmnt", "--noheadings", "--output", "SOURCE", str(self.results)]
        device = subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()
        if self.moment(run) is None:
            return False
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
        return self.struck(run)

    def struck(self, run: Run) -> bool:
        """What the run does now: False if it did not notice."""
        return run.ended() != 0

    def recover(self) -> None:
        if self.mounted:
            _unmount(self.results)
            assert subprocess.run(["e2fsck", "-p", self.disk], capture_output=True).returncode in (0, 1)
            self._mount()
        super().recover()


class PowerCut(ReadOnly):
    """The same, and all processes end at once: only what an fsync has sent to the disk is left of results/."""

    name = "power cut"

    def struck(self, run: Run) -> bool:
        self.unlock = True
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        run.outlived()
        return True


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
        self.when = BETWEEN

    @abstractmethod
    def damage(self, content: bytearray) -> None:
        """Changes the content."""

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
