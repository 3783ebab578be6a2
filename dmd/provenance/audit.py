"""Compares artifacts with the records beside them: finds damaged ones and everything made from them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dmd.config.rule_table import is_artifact
from dmd.provenance import files, record

KINDS = frozenset({".safetensors", ".tar", ".parquet", ".json", ".onnx"})
SCRATCH = frozenset({"checkpoints", "grids", "logs", "benchmarks"})

Records = dict[Path, dict[str, Any]]  # artifact -> its record, inputs by Path
Reasons = dict[Path, str]  # file -> what is wrong with it
Sizes = Callable[[str, str | None, Iterable[str]], Mapping[str, int | None]]  # see `dmd.data.remote.sizes`


def audit(folder: Path, stored_sizes: Sizes) -> tuple[Reasons, Reasons, list[str]]:
    """Checks all files below `folder` but scratch folders; paths in records are relative to the current directory.

    Args:
        folder: the folder of results.
        stored_sizes: gives sizes of files that are only in a storage, from its prefix, its endpoint and their names.

    Returns:
        The reasons why files are damaged; the reasons why files made from them, directly or not, are bad; and notes on
        files that are left alone: those without a record that no stage makes, and intact artifacts whose input has
        changed, which Snakemake makes again if a target needs them.

    Raises:
        ValueError: the folder is missing, or a stage is writing into it now.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    folder = _normal(folder)
    refuse_while_writing(folder)
    records, bad, unknown = _scan(folder)
    remote = {path: entry for path, entry in records.items() if record.storage_location(entry) and not path.is_file()}
    bad |= _compare({path: entry for path, entry in records.items() if path not in remote})
    bad_remote, remote_notes = _compare_remote(remote, stored_sizes)
    bad |= bad_remote
    missing, notes = _compare_inputs(records, folder, bad)
    bad |= missing
    notes += remote_notes
    notes += [f"{path}: has no record, and no stage makes it; left alone" for path in unknown]
    return bad, _derived(records, bad), [*notes, f"{folder}: {len(records)} artifacts checked"]


def records_now(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """The `record.file_identity` of each record below `folder`, by artifact."""
    sides = [path for path in _walk(_normal(folder)) if path.name.startswith(".") and path.suffix == ".json"]
    return {
        artifact: record.file_identity(artifact) for artifact in (side.with_name(side.name[1:-5]) for side in sides)
    }


def refuse_while_writing(folder: Path) -> None:
    """ValueError if a stage holds the lock of an artifact below `folder`.

    Takes a shared flock, which filelock lacks, so that several audits can run at once and need no write access.
    """
    for lock in _walk(folder):
        if lock.name.startswith(".") and lock.suffix == ".lock":
            with contextlib.suppress(FileNotFoundError), lock.open() as stream:  # its stage may end just now
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ValueError(f"a stage holds {lock}: wait until it has finished") from error


def _scan(folder: Path) -> tuple[Records, Reasons, list[Path]]:
    """All records below `folder`, the artifacts that have none, and other files that look like artifacts."""
    records: Records = {}
    unrecorded: dict[Path, Path] = {}  # artifact -> itself, or its damaged record where only that is there
    for path in _walk(folder):
        if path.name.startswith(".tmp-"):
            continue
        if path.name.startswith(".") and path.suffix == ".json":
            artifact = path.with_name(path.name[1:-5])
            if entry := record.read(artifact):
                inputs = {_normal(Path(name)): digest for name, digest in entry["inputs"].items()}
                records[artifact] = entry | {"inputs": inputs}
            else:
                unrecorded.setdefault(artifact, path)
        elif path.suffix in KINDS and not path.name.startswith("."):
            unrecorded[path] = path
    unrecorded = {artifact: path for artifact, path in unrecorded.items() if artifact not in records}
    known = {artifact for artifact in unrecorded if is_artifact(artifact.relative_to(folder))}
    unknown = [path for artifact, path in unrecorded.items() if artifact not in known]
    return records, {artifact: "has no readable record" for artifact in unrecorded if artifact in known}, unknown


def _compare(records: Records) -> Reasons:
    """Artifacts that are not what their record says."""
    bad: Reasons = {}
    total = sum(path.stat().st_size for path in records if path.is_file())
    every = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, unit="B", unit_scale=True, desc="hashed", mininterval=every, leave=False) as bar:
        for path, entry in records.items():
            digest = _digest(path, bar)
            if not digest:
                bad[path] = "is missing"
            elif digest != entry["sha256"]:
                size = path.stat().st_size
                cut = f"is truncated: {size} of {entry['size']} bytes"
                altered = f"was altered: sha256 {digest[:12]}..., {entry['sha256'][:12]}... was recorded"
                bad[path] = cut if size < entry["size"] else altered
    return bad


def _compare_remote(records: Records, stored_sizes: Sizes) -> tuple[Reasons, list[str]]:
    """Checks files that are only in a storage: reasons for missing files and other sizes, and a note on each storage.

    Digests are compared when a file is read.
    """
    storages: dict[tuple[str, str | None], dict[str, Path]] = {}
    bad: Reasons = {}
    for path, entry in records.items():
        if location := record.storage_location(entry):
            storages.setdefault((location.prefix, location.endpoint), {})[location.name] = path
    notes = []
    for (prefix, endpoint), names in storages.items():
        try:
            sizes = stored_sizes(prefix, endpoint, names)
        except (ValueError, OSError) as error:
            notes.append(f"{prefix}: {len(names)} files are only there; the storage could not be asked ({error})")
            continue
        notes.append(f"{prefix}: {len(names)} files are only there")
        for name, path in names.items():
            if sizes[name] != records[path]["size"]:
                there = (
                    "is missing" if sizes[name] is None else f"has {sizes[name]} bytes, not {records[path]['size']},"
                )
                bad[path] = f"{there} in {prefix}, where it was stored"
    return bad, notes


def _compare_inputs(records: Records, folder: Path, bad: Reasons) -> tuple[Reasons, list[str]]:
    """Intact artifacts with inputs in results/ that are missing; notes on other missing and on changed inputs."""
    missing: Reasons = {}
    notes: list[str] = []
    outside: dict[Path, str] = {}
    for path, entry in records.items():
        for source, recorded in entry["inputs"].items():
            if path in bad or source in bad:
                continue
            if source in records:
                current = records[source]["sha256"]
            else:
                if source not in outside:
                    outside[source] = _digest(source, None)
                current = outside[source]
            if not current and source.is_relative_to(folder):
                missing[path] = f"its input {source} is missing"
            elif not current:
                notes.append(f"{path}: its input {source} is missing; put it back, no stage makes it")
            elif current != recorded:
                notes.append(f"{path}: out of date, since {source} has changed; kept")
    return missing, notes


def _derived(records: Records, bad: Reasons) -> Reasons:
    """Everything made, directly or not, from what is bad."""
    made: dict[Path, list[Path]] = {}
    for path, entry in records.items():
        for source in entry["inputs"]:
            made.setdefault(source, []).append(path)
    derived: Reasons = {}
    causes = list(bad)
    for cause in causes:  # grows while it is read
        for path in made.get(cause, []):
            if path not in bad and path not in derived:
                derived[path] = f"made from {cause}"
                causes.append(path)
    return derived


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SCRATCH)
        for name in sorted(names):
            yield Path(root, name)


def _digest(path: Path, bar: Any) -> str:
    """SHA-256 of the file's bytes, "" if there is no such file."""
    if not path.is_file():
        return ""
    return files.sha256(path, advance=bar.update if bar is not None else None)


def _normal(path: Path) -> Path:
    """Relative to the current directory where it lies below it, absolute otherwise."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
