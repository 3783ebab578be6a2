"""Atomic writes, digests, and a canonical form of JSON."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dmd.config.section_base import canonical_json as canonical_json  # for specs and files

CHUNK_SIZE = 1 << 20

_unfinished: set[Path] = set()  # temporary files and folders of this process


def json_object(text: str | bytes, path: Path) -> dict[str, Any]:
    """Parses `text`, the content or metadata of the file at `path`, as a JSON object; ValueError names the file."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its metadata are not JSON ({error}): run `make verify`") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: its metadata are not a JSON object: run `make verify`")
    return value


def sha256(path: Path, *, advance: Callable[[int], object] | None = None) -> str:
    """Hex digest of a file's bytes; `advance` gets the size of each piece. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_SIZE):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it replaces `path` only after the block ends without error.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is unchanged, the temporary file removed.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    _unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"no space left while writing {path}: nothing was written; free some space and run again"
            ) from error
        raise
    finally:
        _unfinished.discard(temporary)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end; so is one that a killed process has left there."""
    _unfinished.add(path)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes what `atomic` and `scratch` have not finished, for a process that ends in the midst of them."""
    for path in list(_unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sends a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
