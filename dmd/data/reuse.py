"""What the stages of pairs leave in a storage, and what they take from it in place of drawing it again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmd.cluster import reporting
from dmd.data import manifest, shards
from dmd.data.manifest import ShardFile
from dmd.data.remote import StorageError
from dmd.data.storage import Settings, Storage, open_shard
from dmd.provenance import files, record

HEAD = 1 << 18  # bytes that hold the record which a shard begins with


def opened(settings: Settings | None) -> Storage | None:
    """The storage of a spec, None where it names none."""
    return Storage(settings, log=reporting.log) if settings else None


def recall_block(
    storage: Storage, output: Path, made: Mapping[Path, bool], provenance: Mapping[str, Any], inputs: record.Inputs
) -> bool:
    """Takes a block file from the storage if it was made of the same, and all its shards are here or there.

    Its shards stay there; each gets a record that says so, and what is here of it without being `made` goes. False
    where something is missing or differs.

    Raises:
        StorageError: the storage does not say.
        ValueError: the block file is damaged there, and can be removed.
    """
    entry = storage.record(output)
    if entry is None:
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".tmp-") as folder:
        copy = Path(folder, output.name)
        try:
            storage.fetch(output, entry, copy)
            block, content = manifest.read(copy), copy.read_bytes()
        except ValueError as error:
            if storage.writable or isinstance(error, StorageError):
                raise
            reporting.log(f"{error}; it cannot be removed there, so that the block is made here")
            return False
    if _canonical({key: block.metadata.get(key) for key in provenance}) != _canonical(provenance):
        reporting.log(f"{storage.url(output)} was made from other inputs or numbers: it is made anew")
        return False
    own = {path.name: path for path in made}
    listed = {own[file.path.name]: file for file in block.shards if file.path.name in own}
    if [*listed] != [*made] or not _are_there(storage, listed, made):
        return False
    for path, file in listed.items():
        if not made[path]:
            _leave(storage, path, record.entry(file.sha256, file.size, stage=provenance["stage"], inputs=inputs))
    tars = {"shards": {str(path): file.sha256 for path, file in listed.items()}}
    with record.publish(output, stage=provenance["stage"], inputs={**inputs, **tars}) as temporary:
        temporary.write_bytes(content)
    reporting.log(f"{len(listed)} shards were drawn before: {storage.url(output)} lists them")
    return True


def claim(
    storage: Storage, path: Path, origin: Mapping[str, Any], number: int, inputs: record.Inputs, *, made: bool
) -> bool:
    """Whether shard `number` need not be drawn: it is `made`, or the storage has it, made of the same.

    Writes the record of one that is only there, in place of what is here without being `made`.

    Raises:
        StorageError: the storage does not say.
        ValueError: the storage has another shard of this name, which is not the one that this folder knew.
    """
    entry, known = storage.record(path), (record.read(path) or {}).get("sha256")
    if entry is None or (made and known == entry["sha256"]):
        return made
    found = shards.parse_record(storage.head(path, HEAD)) or {}
    same = found.get("origin") == origin and found.get("shard") == number
    if same and not made:
        _leave(storage, path, record.entry(entry["sha256"], entry["size"], stage=origin["stage"], inputs=inputs))
        return True
    if storage.writable and known != entry["sha256"]:
        raise ValueError(
            f"{storage.url(path)} is not of this folder: sha256 {entry['sha256']}, made from other inputs or numbers, "
            "or elsewhere. It is not replaced: name another storage.prefix, or remove it there"
        )
    return made


def listed(path: Path, first_seed: int, storage: Storage | None) -> tuple[str, pa.Table, dict[str, Any]]:
    """Digest, rows and facts of one shard, here or in the storage; paths in rows are relative to a folder beside it."""
    entry = record.read(path)
    digest = entry["sha256"] if entry and not path.is_file() else record.check(path)
    file = ShardFile(path, entry["size"] if entry else path.stat().st_size, digest, 0, 0)
    with open_shard(file, storage, checked=True) as shard:
        table = manifest.rows_of(shard, f"../{path.name}", size=file.size, sha256=digest, first_seed=first_seed)
        facts = (shards.read_record(shard.path) or {})["facts"]
    return digest, table, facts


def settle(storage: Storage, output: Path, paths: Sequence[Path]) -> None:
    """Uploads a block file and those of its shards that are here, and removes them here where they are not kept."""
    if not storage.writable:
        return
    here = [path for path in paths if path.is_file()]
    for path in [*here, output]:
        storage.upload(path)
    if not storage.keep:
        for path in here:
            storage.drop(path)


def check(storage: Storage, away: Sequence[ShardFile]) -> None:
    """Compares sizes of shards that are only in the storage; whoever reads them compares digests.

    Raises:
        ValueError: one is missing there, or has another size.
    """
    for file, size in zip(away, storage.sizes([file.path for file in away]), strict=True):
        if size != file.size:
            found = "is not there" if size is None else f"has {size} bytes, {file.size} were recorded"
            raise ValueError(f"{storage.url(file.path)} {found}: run `make verify`, then snakemake again")


def _leave(storage: Storage, path: Path, entry: dict[str, Any]) -> None:
    """Writes the record of a shard that is only in the storage; a tar that is here is damaged, or of other numbers."""
    with record.exclusive(path, wait=True):  # a job whose block has the same shard may just publish it
        storage.note(path, entry)
        path.unlink(missing_ok=True)


def _are_there(storage: Storage, listed: Mapping[Path, ShardFile], made: Mapping[Path, bool]) -> bool:
    """Whether each shard is `made` here, with the digest that is listed, or in the storage."""
    away = {path: file for path, file in listed.items() if not made[path]}
    for path, file in listed.items():
        if path not in away and (record.read(path) or {}).get("sha256") != file.sha256:
            reporting.log(f"{path} is another shard than that in {storage.prefix}: the one here counts")
            return False
    missing = [path for path, size in zip(away, storage.sizes([*away]), strict=True) if size != away[path].size]
    for path in missing:
        reporting.log(f"{storage.url(path)} is missing, or has another size: it is made anew")
    return not missing


def _canonical(value: Mapping[str, Any]) -> str:
    return files.canonical_json(dict(value))
