"""Checks the digests of files from outside the workflow.

The configuration may have all 64 hex digits of a digest, its first ones, or none. Unless it has all, the file's digest
is recorded beside it at first use, in `.name.json`, and may not change from then on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmd.config import printing
from dmd.config.section_base import FULL_LENGTH
from dmd.provenance import files, outside_files, record


def check(path: Path, sha256: str | None, *, key: str = "the configuration", source: str = "") -> str:
    """Digest of a file from outside, after comparing it with the expected and the recorded digest.

    Args:
        path: the file; a record may be written beside it.
        sha256: all 64 hex digits, the first ones, or None.
        key: where `sha256` was given, for messages.
        source: what the file is or where it comes from, for the messages.

    Returns:
        All 64 hex digits.

    Raises:
        ValueError: the file is missing or plainly something else (see `outside_files.check`), does not match `sha256`,
            has changed since its digest was recorded, or its digest cannot be recorded.
    """
    about = f" ({source})" if source else ""
    if not path.exists():
        wanted = f" with sha256 {printing.digest(sha256)}" if sha256 else ""
        raise ValueError(f"{path} is missing: put the file{wanted} there{about}")
    with outside_files.reading(path, advice=about):
        digest = files.sha256(path)
    if sha256 and not digest.startswith(sha256):
        raise ValueError(f"{path} has sha256 {digest}, but {key} pins {printing.digest(sha256)}{about}")
    if sha256 is None or len(sha256) < FULL_LENGTH:
        _compare(path, digest, key)
    return digest


def write_record(path: Path, digest: str, size: int, **facts: Any) -> None:
    """Writes the record of the file that lies, or will lie, at `path`."""
    record.write(path, {"sha256": digest, "size": size, "inputs": {}, **facts})


def _compare(path: Path, digest: str, key: str) -> None:
    """Records a digest, or compares it with the recorded one."""
    try:
        if record.read_checked(path) is None:
            with record.exclusive(path, wait=True):
                if record.read_checked(path) is None:  # no other process has recorded it meanwhile
                    write_record(path, digest, path.stat().st_size)
    except OSError as error:
        raise ValueError(
            f"{path}: its sha256 cannot be recorded beside it ({error}); write all of it into {key}: {digest}"
        ) from error
    record.compare(path, digest)
