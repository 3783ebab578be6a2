"""Records beside artifacts: what each was made from, and its digest, by which `verify` finds damage.

Beside each artifact `name` lies `.name.json`: size and sha256 of the artifact, and the digest of each input by
path. The inputs of a block file include the tars that it lists. Each record has a digest of itself, so that flipped
bits in it are detected.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from dmd.config.rule_table import VERSIONS
from dmd.provenance import files, memory_limit

Inputs = dict[str, dict[str, str]]  # name of the input -> {path: sha256}
POLL_SECONDS = 1.0  # between two looks at who holds a lock
UNKNOWN = "unknown"  # the command of a process that has not yet written it into its lock
OWN_DIGEST = "record"  # key: sha256 of the canonical JSON of all other keys
_KEYS = frozenset({"sha256", "size", "inputs", "stage", "version", "stored", "url", OWN_DIGEST})
_log = logging.getLogger("dmd")


def sidecar(path: Path) -> Path:
    """Where the record of `path` lies."""
    return path.with_name(f".{path.name}.json")


def read(path: Path) -> dict[str, Any] | None:
    """The record of an artifact, None where there is none or it is damaged."""
    with contextlib.suppress(ValueError):
        return read_checked(path)
    return None


def file_identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of an artifact's record, which change when it is rewritten; None if there is no record."""
    with contextlib.suppress(FileNotFoundError):
        status = sidecar(path).stat()
        return status.st_ino, status.st_mtime_ns
    return None


def read_checked(path: Path) -> dict[str, Any] | None:
    """The record of an artifact, None where there is none; ValueError if there is one that is damaged."""
    side = sidecar(path)
    try:
        entry = parse(side.read_bytes())
    except FileNotFoundError:
        return None
    if entry is None:
        raise ValueError(
            f"{side}, the record of {path}, is damaged: run `make verify`, which removes both, then snakemake; for a "
            "file outside results/, remove only the record, which is then written anew for the present file"
        )
    return entry


def parse(text: bytes) -> dict[str, Any] | None:
    """The record in a file's bytes, without its own digest; None if they are not a record, or a damaged one."""
    try:
        record = json.loads(text)
        if not isinstance(record, dict) or not record.keys() <= _KEYS:
            return None
        if record.pop(OWN_DIGEST, None) != _own_digest(record):
            return None
    except (ValueError, RecursionError):
        return None
    digest, size, inputs = (record.get(key) for key in ("sha256", "size", "inputs"))
    if not isinstance(digest, str) or not isinstance(size, int) or not isinstance(inputs, dict):
        return None
    return record if all(isinstance(each, str) for each in inputs.values()) else None


def write(path: Path, entry: Mapping[str, Any]) -> None:
    """Writes the record of the file that lies, or will lie, at `path`."""
    with files.atomic(sidecar(path)) as side:
        side.write_text(files.canonical_json({**entry, OWN_DIGEST: _own_digest(entry)}) + "\n")


def _own_digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(files.canonical_json(dict(entry)).encode()).hexdigest()


class StorageLocation(NamedTuple):
    """Place of a file in object storage: `name` below `prefix`; `endpoint` None is the provider's."""

    prefix: str
    endpoint: str | None
    name: str


def storage_location(record: Mapping[str, Any] | None) -> StorageLocation | None:
    """Place of a file in a storage according to its record; None if the record names none."""
    location = (record or {}).get("stored")
    if not isinstance(location, dict):
        return None
    prefix, endpoint, name = (location.get(key) for key in StorageLocation._fields)
    if isinstance(prefix, str) and isinstance(name, str) and (endpoint is None or isinstance(endpoint, str)):
        return StorageLocation(prefix, endpoint, name)
    return None


def check(path: Path) -> str:
    """Digest of a file, after comparing it with the file's record where there is one.

    Raises:
        ValueError: the file is missing, was altered since it was written, or has a damaged record.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: run snakemake for it, or `make verify` if it should be there")
    digest = files.sha256(path)
    compare(path, digest)
    return digest


def compare(path: Path, digest: str) -> None:
    """ValueError if the record of the file is damaged or has another digest than `digest`, that of its bytes."""
    record = read_checked(path)
    if not record or record["sha256"] == digest:
        return
    if record.get("stage", "fetch") == "fetch":  # no stage makes it
        raise ValueError(
            f"{path} has changed: sha256 {digest}, but {record['sha256']} was recorded earlier; restore that file, "
            f"or remove {sidecar(path)} if the change is intended"
        )
    raise ValueError(
        f"{path} is damaged: sha256 {digest} but {record['sha256']} was recorded when it was written; "
        "`make verify` removes it and what was made from it, then run snakemake again"
    )


def check_inputs(**paths: Path | Sequence[Path] | None) -> Inputs:
    """Digests of all inputs of a stage by name and path; ValueError names a damaged one."""
    inputs: Inputs = {}
    for name, value in paths.items():
        if value is not None:
            group = [value] if isinstance(value, Path) else value
            inputs[name] = {str(path): check(path) for path in group}
    return inputs


def made_from(path: Path, source: Path, digest: str) -> bool:
    """Whether `path` was made from the file `source` of this digest, as the records of the files between them say.

    A file between them that has been made again since is not followed.
    """
    waiting, seen = [path], {path}
    while waiting:
        for name, recorded in (read(waiting.pop()) or {"inputs": {}})["inputs"].items():
            other = Path(name)
            if os.path.abspath(other) == os.path.abspath(source):
                if recorded == digest:
                    return True
            elif other not in seen and (read(other) or {}).get("sha256") == recorded:
                seen.add(other)
                waiting.append(other)
    return False


def provenance(stage: str, spec: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The metadata of every artifact: stage, version, spec, digests of inputs (sorted by path)."""
    digests: dict[str, Any] = {}
    for name, group in inputs.items():
        values = [group[path] for path in sorted(group)]
        digests[name] = values[0] if len(values) == 1 else values
    return {"stage": stage, "version": VERSIONS[stage], "spec": dict(spec), "inputs": digests}


def entry(sha256: str, size: int, *, stage: str, inputs: Inputs) -> dict[str, Any]:
    """The record of a file of `size` bytes that a stage makes."""
    digests = {name: digest for group in inputs.values() for name, digest in group.items()}
    return {"sha256": sha256, "size": size, "stage": stage, "version": VERSIONS[stage], "inputs": digests}


@contextlib.contextmanager
def publish(path: Path, *, stage: str, inputs: Inputs) -> Iterator[Path]:
    """Like `files.atomic`, and writes the record just before the artifact appears.

    Raises:
        MemoryError: memory was so tight that results may be rounded differently; nothing is written.
    """
    with files.atomic(path) as temporary:
        yield temporary
        memory_limit.check()
        write(path, entry(files.sha256(temporary), temporary.stat().st_size, stage=stage, inputs=inputs))


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks `path` for one writer; a second is refused or waits. The lock ends with its process, even when killed."""
    lock_file, lock = _lock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise ValueError(f"another process is writing {path}: wait for it or stop it") from error
    with _released(lock_file, lock):
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Locks an artifact for the stage that makes it; waits for another process that is making it.

    A stage that failed would make Snakemake remove what the other process has just finished.

    Raises:
        MadeMeanwhile: the other process, with the same command line, has made the artifact.
    """
    before, command, other = file_identity(path), _command(), ""
    lock_file, lock = _lock(path)
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS if other else 0)
            break
        except Timeout:
            first = not other
            with contextlib.suppress(FileNotFoundError):
                other = lock_file.read_text() or UNKNOWN
            if first:
                _log.info("another process is writing %s: waiting for its end", path)
    with _released(lock_file, lock):
        if other == command and path.exists() and file_identity(path) != before:
            raise MadeMeanwhile(f"another process has made {path} meanwhile, with the same command")
        lock_file.write_text(command)
        yield


class MadeMeanwhile(Exception):
    """Another process has made what this one was to make."""


def _command() -> str:
    """Digest of this process's command line, which is that of every process of its stage."""
    return hashlib.sha256("\0".join(sys.argv).encode(errors="surrogateescape")).hexdigest()


def _lock(path: Path) -> tuple[Path, FileLock]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = path.with_name(f".{path.name}.lock")
    return lock_file, FileLock(lock_file, fallback_to_soft=False)  # a soft lock would outlive a killed process


@contextlib.contextmanager
def _released(lock_file: Path, lock: FileLock) -> Iterator[None]:
    """Releases an acquired lock at the end."""
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # a process that waits for the lock then locks a new file
        lock.release()
