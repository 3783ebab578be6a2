"""A folder of files named by their sha256, limited in size, which several processes of a machine share."""

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
_ENTRY = re.compile(r"[0-9a-f]{64}(\.\w+)?")  # files of other names in the folder are left alone
_PARTIAL = re.compile(r"\.[0-9a-f]{64}(\.\w+)?\.(?P<size>\d+)\.part")
Download = Callable[[Path], str]  # writes a file to a path, resuming a partial one, and returns its sha256


class Cache:
    """Files named by their digest; the least recently used ones are removed when others need room.

    Each entry is locked while a process downloads or opens it. All files together have at most `limit` bytes;
    processes that download at the same moment may exceed that by one file each.
    """

    def __init__(self, folder: Path, *, limit: int, log: Callable[[str], None]) -> None:
        self.folder, self.limit, self._log = folder, limit, log
        self._verified: set[str] = set()  # digests of entries that this process has compared

    @contextlib.contextmanager
    def entry(self, url: str, *, size: int, sha256: str, download: Download) -> Iterator[Path]:
        """Path of a file, which is downloaded if it is not cached, and is not removed before the block ends.

        A file that the block has opened or mapped stays readable after the block.

        Args:
            url: where `download` gets it from, for messages.
            size: of the file, in bytes.
            sha256: of the file.

        Raises:
            ValueError: two downloads in a row have another sha256, the cache is smaller than the file, or `sha256` is
                not a digest.
            OSError: the disk is full.
        """
        if not DIGEST.fullmatch(sha256):
            raise ValueError(f"{url} is recorded with sha256 {sha256!r}, which is not a digest: run `make verify`")
        path = self.folder / f"{sha256}{Path(url).suffix}"
        with record.exclusive(path, wait=True):
            if not self._is_intact(path, size, sha256):
                self._download(path, url, size, sha256, download)
            os.utime(path)  # the least recently used one is removed first
            yield path

    def _is_intact(self, path: Path, size: int, sha256: str) -> bool:
        if not path.is_file():
            return False
        if path.stat().st_size == size and (sha256 in self._verified or files.sha256(path) == sha256):
            self._verified.add(sha256)
            return True
        self._log(f"{path} was altered: it is downloaded again")
        path.unlink()
        return False

    def _download(self, path: Path, url: str, size: int, sha256: str, download: Download) -> None:
        partial = path.with_name(f".{path.name}.{size}.part")
        self._make_room(size, url, keep=(path.name, partial.name))
        digests = []
        try:
            for _ in range(2):
                digests.append(download(partial))
                if digests[-1] == sha256:
                    os.replace(partial, path)
                    self._verified.add(sha256)
                    return
                self._log(f"{url} came with sha256 {digests[-1]}, but {sha256} is recorded: downloading it again")
                _discard(partial)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _discard(partial)
            raise OSError(
                f"no space left in {self.folder} while downloading {url} ({size / GIGABYTE:.3g} GB): free some, or "
                f"lower storage.cache_gb (now {self.limit / GIGABYTE:g}), so that older files are removed earlier"
            ) from error
        raise ValueError(
            f"{url} is damaged: its downloads have sha256 {digests[0]} and {digests[-1]}, its record says {sha256}. "
            "Remove that object; `make verify` then reports it as missing, and snakemake makes it again"
        )

    def _make_room(self, size: int, url: str, keep: tuple[str, str]) -> None:
        """Removes the least recently used files that no process has locked, until `size` bytes fit beside the others.

        `size` counts all bytes of the two files named in `keep`, which stay.
        """
        if size > self.limit:
            raise ValueError(
                f"{url} has {size / GIGABYTE:.3g} GB, but storage.cache_gb is {self.limit / GIGABYTE:g}: raise it"
            )
        with record.exclusive(self.folder / "room", wait=True):
            others = [path for path in self.folder.iterdir() if path.name not in keep]
            usage = {path: time_and_size for path in others if (time_and_size := _usage(path)) is not None}
            total = sum(num for _, num in usage.values())
            for path, (_, num) in sorted(usage.items(), key=lambda each: each[1]):
                if total + size <= self.limit:
                    return
                if self._remove(path):
                    total -= num

    def _remove(self, path: Path) -> bool:
        """Removes an entry, or a partial download of one, unless a process has locked it."""
        entry = path.name.removeprefix(".").removesuffix(".part")
        entry = entry if entry == path.name else entry.rpartition(".")[0]
        try:
            with record.exclusive(self.folder / entry):
                _discard(path)
        except ValueError:
            return False
        return True


def _usage(path: Path) -> tuple[float, int] | None:
    """Time of last use, and bytes that an entry has or will have; None if the file is no entry of the cache."""
    with contextlib.suppress(OSError):
        if path.is_file() and (name := _PARTIAL.fullmatch(path.name)):
            return path.stat().st_mtime, int(name["size"])
        if path.is_file() and _ENTRY.fullmatch(path.name):
            return path.stat().st_mtime, path.stat().st_size
    return None


def _discard(path: Path) -> None:
    """Removes a file and, for a partial download, the note beside it that names its version."""
    for each in (path, path.with_name(f"{path.name}.json")):
        each.unlink(missing_ok=True)
