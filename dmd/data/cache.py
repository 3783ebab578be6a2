"""A bounded folder of files known by their sha256, which several processes of a machine share."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dmd.provenance import files, record

GIGABYTE = 10**9
DIGEST = re.compile("[0-9a-f]{64}")
_ENTRY = re.compile(r"[0-9a-f]{64}(\.\w+)?")  # other files in the folder are not ours
_PARTIAL = re.compile(r"\.[0-9a-f]{64}(\.\w+)?\.(?P<size>\d+)\.part")
Download = Callable[[Path], str]  # brings the file to a path, going on from what is there; returns its sha256


class Cache:
    """Files named by their digest, the least recently used ones making room for others.

    Each entry has a lock while it is brought or opened. Files of `limit` bytes in all are kept; processes that bring
    files at the same moment may exceed it by one file each.
    """

    def __init__(self, folder: Path, *, limit: int, log: Callable[[str], None]) -> None:
        self.folder, self.limit, self._log = folder, limit, log
        self._checked: set[str] = set()  # digests of entries that this process has seen whole

    @contextlib.contextmanager
    def entry(self, url: str, *, size: int, sha256: str, download: Download) -> Iterator[Path]:
        """Path of a file, which stays until the block ends; a file that is open or mapped then can be read on.

        Args:
            url: where `download` brings it from, for messages.
            size, sha256: of the file, in bytes.

        Raises:
            ValueError: what came twice is another file, the cache is smaller than the file, or `sha256` is none.
            OSError: the disk is full.
        """
        if not DIGEST.fullmatch(sha256):
            raise ValueError(f"{url} is recorded with sha256 {sha256!r}, which is none: run `make verify`")
        path = self.folder / f"{sha256}{Path(url).suffix}"
        with record.exclusive(path, wait=True):
            if not self._is_whole(path, size, sha256):
                self._bring(path, url, size, sha256, download)
            os.utime(path)  # the least recently used one goes first
            yield path

    def _is_whole(self, path: Path, size: int, sha256: str) -> bool:
        if not path.is_file():
            return False
        if path.stat().st_size == size and (sha256 in self._checked or files.sha256(path) == sha256):
            self._checked.add(sha256)
            return True
        self._log(f"{path} was altered: it is downloaded again")
        path.unlink()
        return False

    def _bring(self, path: Path, url: str, size: int, sha256: str, download: Download) -> None:
        partial = path.with_name(f".{path.name}.{size}.part")
        self._make_room(size, url, keep=(path.name, partial.name))
        found = []
        try:
            for _ in range(2):
                found.append(download(partial))
                if found[-1] == sha256:
                    os.replace(partial, path)
                    self._checked.add(sha256)
                    return
                self._log(f"{url} came with sha256 {found[-1]}, {sha256} is recorded: it is downloaded once more")
                _discard(partial)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _discard(partial)
            raise OSError(
                f"no space left in {self.folder} while downloading {url} ({size / GIGABYTE:.3g} GB): free some, or "
                f"lower storage.cache_gb, {self.limit / GIGABYTE:g} now, so that older files make room in time"
            ) from error
        raise ValueError(
            f"{url} is damaged: sha256 {found[-1]}, and {found[0]} before, but its record says {sha256}: nothing of it "
            "was used. Remove that object; `make verify` then misses it, and snakemake makes it again"
        )

    def _make_room(self, size: int, url: str, keep: tuple[str, str]) -> None:
        """Removes the least recently used files that nobody holds, until `size` bytes fit: those of `keep` in all."""
        if size > self.limit:
            raise ValueError(
                f"{url} has {size / GIGABYTE:.3g} GB, but storage.cache_gb is {self.limit / GIGABYTE:g}: raise it"
            )
        with record.exclusive(self.folder / "room", wait=True):
            others = [path for path in self.folder.iterdir() if path.name not in keep]
            kept = {path: found for path in others if (found := _extent(path)) is not None}
            total = sum(num for _, num in kept.values())
            for path, (_, num) in sorted(kept.items(), key=lambda each: each[1]):
                if total + size <= self.limit:
                    return
                if self._removed(path):
                    total -= num

    def _removed(self, path: Path) -> bool:
        """Removes a file, or what came of it, unless a process is bringing or opening it."""
        whole = path.name.removeprefix(".").removesuffix(".part")
        whole = whole if whole == path.name else whole.rpartition(".")[0]
        try:
            with record.exclusive(self.folder / whole):
                _discard(path)
        except ValueError:
            return False
        return True


def _extent(path: Path) -> tuple[float, int] | None:
    """Time of last use, and bytes that a file has or will have; None of files that are not of the cache."""
    with contextlib.suppress(OSError):
        if path.is_file() and (found := _PARTIAL.fullmatch(path.name)):
            return path.stat().st_mtime, int(found["size"])
        if path.is_file() and _ENTRY.fullmatch(path.name):
            return path.stat().st_mtime, path.stat().st_size
    return None


def _discard(path: Path) -> None:
    """Removes a file and, of one that was on its way, what says which version it is of."""
    for each in (path, path.with_name(f"{path.name}.json")):
        each.unlink(missing_ok=True)
