"""Files from outside the workflow: which of them a job reads, and a digest that changes when one of them changes.

They are no inputs in Snakemake's sense. It reruns a job only for a newer input, so it would miss a file that was
overwritten by an older one; it deletes a finished output whose input has a time in the future; and it takes braces in
a path for wildcards. Instead the digest is a parameter of the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmd.config.messages import ConfigError
from dmd.config.printing import piece

IMAGES = frozenset(  # suffixes of the images that are read
    ".apng .avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
SAVED = frozenset({".json", ".safetensors", ".txt"})  # suffixes of files that diffusers and transformers save
MAX_DEPTH, MAX_LINKS = 100, 100  # of nested folders, and of ways to one folder
MAX_RECORD = 100_000  # bytes
OWN_FOLDERS = (".", "results", ".snakemake")  # no folder of images may be or hold one, or lie in one but the first
KINDS = (  # what a path may lead to that is no file
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


@dataclass
class Listing:
    """Files of a folder.

    Attributes:
        names: paths relative to the folder of the files that are read, sorted.
        passed_over: number of other files by suffix; "hidden" for hidden files and folders, "none" without a suffix.
        digest: of names, sizes, times and inodes of the files that are read.
    """

    names: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    digest: str = ""


def fault(path: str | Path) -> str | None:
    """Why `path` cannot be read as a file, such as "is missing"; None if it can."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return f"is a link to {piece(os.readlink(path))}, which is missing" if os.path.islink(path) else "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    kind = next((name for test, name in KINDS if test(status.st_mode)), None)
    if kind:
        return f"is {kind}, not a file"
    return None if os.access(path, os.R_OK) else "cannot be read: Permission denied"


def identity(paths: Sequence[str | Path]) -> str:
    """Digest of paths, sizes, times and inodes of files; those of a missing file do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_line(str(path), os.stat(path)) if os.path.exists(path) else os.fsencode(path))
    return digest.hexdigest()


def was_fetched(file: str) -> bool:
    """Whether rule fetch wrote the file, by the record beside it, and nobody has replaced it since then."""
    record = os.path.join(os.path.dirname(file), f".{os.path.basename(file)}.json")
    try:
        with open(record, "rb") as stream:
            content = json.loads(stream.read(MAX_RECORD))
        status = os.stat(file)
        same = "url" in content and content["size"] == status.st_size
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return same and os.stat(record).st_mtime <= status.st_mtime <= time.time()


def images(folder: str | Path) -> Listing:
    """The image files in a folder and its sub-folders.

    Raises:
        ConfigError: as `listing`, or the folder is, holds or lies in a folder that the workflow writes.
    """
    return listing(folder, IMAGES, apart_from=OWN_FOLDERS)


def listing(folder: str | Path, suffixes: frozenset[str], apart_from: Sequence[str] = ()) -> Listing:
    """The files with one of `suffixes` in a folder and its sub-folders; links are followed, hidden files skipped.

    Raises:
        ConfigError: the folder is none; a link in it is dangling or goes in a circle; a sub-folder cannot be read; a
            file with one of the suffixes is none, or cannot be read; a folder is, holds or lies in one of `apart_from`.
    """
    place = str(folder)
    if not os.path.isdir(place):
        reason = (fault(place) or "is a file").removesuffix(", not a file")
        raise ConfigError(f"{piece(place)} is not a folder: it {reason}")
    found, lines = Listing(), []
    for path, status in _Walk(suffixes, found.passed_over, apart_from).files(place):
        found.names.append(name := os.path.relpath(path, place))
        lines.append(_line(name, status))
    found.names.sort()
    found.digest = hashlib.sha256(b"".join(sorted(lines))).hexdigest()
    return found


class _Walk:
    """One walk through a folder; counts the files that it passes over."""

    def __init__(self, suffixes: frozenset[str], passed_over: Counter[str], apart_from: Sequence[str]) -> None:
        self._suffixes, self._passed_over = suffixes, passed_over
        self._own = [os.path.realpath(each) for each in apart_from]
        self._visits: Counter[tuple[int, int]] = Counter()  # by device and inode of a folder

    def files(self, folder: str, outer: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of each file that is read; `outer` are the folders that hold this one."""
        entries = self._enter(folder, outer)
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                self._passed_over["hidden"] += 1
            elif suffix in self._suffixes:
                if reason := fault(entry.path):
                    raise ConfigError(f"{piece(entry.path)} {reason}")
                yield entry.path, entry.stat()
            elif os.path.isdir(entry.path):
                yield from self.files(entry.path, (*outer, _place(folder)))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise ConfigError(f"{piece(entry.path)} {fault(entry.path)}")
            else:
                self._passed_over[piece(suffix) or "none"] += 1

    def _enter(self, folder: str, outer: tuple[tuple[int, int], ...]) -> list[os.DirEntry[str]]:
        """What is in a folder; ConfigError if it may not be entered."""
        try:
            here, entries = _place(folder), sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ConfigError(f"{piece(folder)} is a folder that cannot be read: {error.strerror}") from error
        self._visits[here] += 1
        if here in outer:
            real = piece(os.path.realpath(folder))
            raise ConfigError(f"{piece(folder)} goes in a circle: it is a link to {real}, a folder that holds it")
        if len(outer) >= MAX_DEPTH or self._visits[here] > MAX_LINKS:
            raise ConfigError(
                f"{piece(folder)}: folders are nested more than {MAX_DEPTH} deep, or links lead to the same folder in "
                f"more than {MAX_LINKS} ways"
            )
        if not outer or os.path.islink(folder):
            _keep_apart(folder, self._own)
        return entries


def _place(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _keep_apart(folder: str, own: list[str]) -> None:
    """ConfigError if a folder is, holds or lies in a folder of the workflow; it may lie in the working folder."""
    real = os.path.realpath(folder)
    for each in own:
        if is_below(each, real) or (each != own[0] and is_below(real, each)):
            raise ConfigError(
                f"{piece(folder)} is no folder of images: "
                f"{'it is' if real == each else 'it holds' if is_below(each, real) else 'it lies in'} {piece(each)}, "
                "where the workflow writes pictures of its own; move the images to a folder of their own"
            )


def is_below(path: str, folder: str) -> bool:
    """Whether a resolved path is the resolved `folder` or lies in it."""
    return os.path.commonpath([path, folder]) == folder


def _line(name: str, status: os.stat_result) -> bytes:
    return b"%s\0%d %d %d\n" % (os.fsencode(name), status.st_size, status.st_mtime_ns, status.st_ino)
