"""Files from outside: what their digest must be.

A digest is known whole (64 hex digits), by its first digits, or not at all. Where it is not whole, the file's own is
recorded beside it at first use, in `.name.json`, and may not change from then on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmd.provenance import files, record

WHOLE = 64  # hex digits of a sha256


def check(path: Path, sha256: str | None, *, key: str = "the configuration", source: str = "") -> str:
    """Digest of a file from outside, after comparing it with what is known of it.

    Args:
        path: the file; a record may be written beside it.
        sha256: all 64 hex digits, the first ones, or None.
        key: what gives `sha256`, for the messages.
        source: what the file is or where it comes from, for the messages.

    Returns:
        All 64 hex digits.

    Raises:
        ValueError: the file is missing, is another than `sha256` says, has changed since its digest was recorded, or
            its digest cannot be recorded beside it.
    """
    about = f" ({source})" if source else ""
    if not path.is_file():
        wanted = f" with sha256 {described(sha256)}" if sha256 else ""
        raise ValueError(f"{path} is missing: put the file{wanted} there{about}")
    found = files.sha256(path)
    if sha256 and not found.startswith(sha256):
        raise ValueError(f"{path} has sha256 {found}, but {key} pins {described(sha256)}{about}")
    if sha256 is None or len(sha256) < WHOLE:
        _compare(path, found, key)
    return found


def described(sha256: str) -> str:
    """A digest as messages print it; one that is not whole ends in dots."""
    return sha256 if len(sha256) == WHOLE else f"{sha256}..."


def remember(path: Path, digest: str, size: int, **facts: Any) -> None:
    """Writes the record of the file that lies, or will lie, at `path`."""
    record.write(path, {"sha256": digest, "size": size, "inputs": {}, **facts})


def _compare(path: Path, found: str, key: str) -> None:
    """Records a digest, or compares it with the recorded one."""
    try:
        if record.known(path) is None:
            with record.exclusive(path, wait=True):
                if record.known(path) is None:  # nobody was faster
                    remember(path, found, path.stat().st_size)
    except OSError as error:
        raise ValueError(
            f"{path}: its sha256 cannot be recorded beside it ({error}); write all of it into {key}: {found}"
        ) from error
    record.compare(path, found)
