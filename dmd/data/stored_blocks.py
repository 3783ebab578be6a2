"""Takes blocks and shards from a storage, so that they need not be drawn again, and puts new ones there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmd.data import manifest, shards
from dmd.data.manifest import ShardFile
from dmd.data.remote import StorageError
from dmd.data.storage import LOCAL, Settings, Storage
from dmd.jobs import reporting
from dmd.provenance import files, record

HEAD = 1 << 18  # bytes that hold the record which a shard begins with


def connect(settings: Settings | None) -> Storage | None:
    """The storage that a spec names, or None."""
    return Storage(settings, log=reporting.log) if settings else None


def take_block(
    storage: Storage, output: Path, made: Mapping[Path, bool], provenance: Mapping[str, Any], inputs: record.Inputs
) -> bool:
    """Takes a block file from the storage if it has the same inputs and spec and none of its shards is missing.

    A shard may be in the storage or in the folder. If it is not in the folder, it stays in the storage, and a local
    record says so.

    Args:
        made: for the path of each shard, whether the folder has it, complete and with the same inputs and spec. Other
            local files of these names are removed.

    Returns:
        Whether the block was taken.

    Raises:
        StorageError: the storage does not answer.
        ValueError: the block file in the storage is damaged, and can be removed there.
    """
    entry = storage.record(output)
    if entry is None:
        return False
    with files.scratch(output.with_name(f".tmp-{output.name}.copy")) as folder:
        copy = folder / output.name
        try:
            storage.fetch(output, entry, copy)
            block, content = manifest.read(copy), copy.read_bytes()
        except ValueError as error:
            if storage.writable or isinstance(error, StorageError):
                raise
            reporting.log(f"{error}; it cannot be removed there, so the block is made here")
            return False
    if _canonical({key: block.metadata.get(key) for key in provenance}) != _canonical(provenance):
        reporting.log(f"{storage.url(output)} was made from other inputs or another spec: it is made anew")
        return False
    own = {path.name: path for path in made}
    listed = {own[file.path.name]: file for file in block.shards if file.path.name in own}
    if [*listed] != [*made] or not _all_available(storage, listed, made):
        return False
    for path, file in listed.items():
        if not made[path]:
            _leave_there(storage, path, record.entry(file.sha256, file.size, stage=provenance["stage"], inputs=inputs))
    tars = {"shards": {str(path): file.sha256 for path, file in listed.items()}}
    with record.publish(output, stage=provenance["stage"], inputs={**inputs, **tars}) as temporary:
        temporary.write_bytes(content)
    reporting.log(f"{len(listed)} shards were drawn before: {storage.url(output)} lists them")
    return True


def take_shard(
    storage: Storage, path: Path, origin: Mapping[str, Any], number: int, inputs: record.Inputs, *, made: bool
) -> bool:
    """Whether shard `number` need not be drawn, because it is `made` or the storage has it with the same `origin`.

    For a shard that is only in the storage, writes a local record and removes a local file that is not `made`.

    Raises:
        StorageError: the storage does not answer.
        ValueError: the storage has another shard of this name, whose digest the local record does not have.
    """
    entry, known = storage.record(path), (record.read(path) or {}).get("sha256")
    if entry is None or (made and known == entry["sha256"]):
        return made
    stored = shards.parse_record(storage.head(path, HEAD)) or {}
    same = stored.get("origin") == origin and stored.get("shard") == number
    if same and not made:
        _leave_there(storage, path, record.entry(entry["sha256"], entry["size"], stage=origin["stage"], inputs=inputs))
        return True
    if storage.writable and known != entry["sha256"]:
        raise ValueError(
            f"{storage.url(path)} is another shard: sha256 {entry['sha256']}, of other inputs, another spec or another "
            "machine. It is not replaced: set another storage.prefix, or remove it there"
        )
    return made


def describe_shard(path: Path, first_seed: int, storage: Storage | None) -> tuple[str, pa.Table, dict[str, Any]]:
    """Digest, rows and facts of a shard, local or in the storage; rows name it by `../` and its file name."""
    entry = record.read(path)
    digest = entry["sha256"] if entry and not path.is_file() else record.check(path)
    file = ShardFile(path, entry["size"] if entry else path.stat().st_size, digest, 0, 0)
    with (storage or LOCAL).open(file) as shard:
        table = manifest.rows_of(shard, f"../{path.name}", size=file.size, sha256=digest, first_seed=first_seed)
        facts = (shards.read_record(shard.path) or {})["facts"]
    return digest, table, facts


def put_block(storage: Storage, output: Path, paths: Sequence[Path]) -> None:
    """Uploads a block file and its local shards; unless `storage.keep`, removes those shards here."""
    if not storage.writable:
        return
    here = [path for path in paths if path.is_file()]
    for path in [*here, output]:
        storage.upload(path)
    if not storage.keep:
        for path in here:
            storage.remove_local(path)


def check_sizes(storage: Storage, away: Sequence[ShardFile]) -> None:
    """Compares the sizes of shards that are only in the storage; their reader compares digests.

    Raises:
        ValueError: one is missing there, or has another size.
    """
    for file, size in zip(away, storage.sizes([file.path for file in away]), strict=True):
        if size != file.size:
            fault = "is not there" if size is None else f"has {size} bytes, {file.size} were recorded"
            raise ValueError(f"{storage.url(file.path)} {fault}: run `make verify`, then snakemake again")


def _leave_there(storage: Storage, path: Path, entry: dict[str, Any]) -> None:
    """Writes the local record of a shard in the storage, and removes a local file, which is damaged or outdated."""
    with record.exclusive(path, wait=True):  # another job may be publishing the same shard
        storage.remove_local(path, entry)


def _all_available(storage: Storage, listed: Mapping[Path, ShardFile], made: Mapping[Path, bool]) -> bool:
    """Whether each shard is `made` here, with the digest that is listed, or in the storage."""
    away = {path: file for path, file in listed.items() if not made[path]}
    for path, file in listed.items():
        if path not in away and (record.read(path) or {}).get("sha256") != file.sha256:
            reporting.log(f"{path} differs from the shard in {storage.prefix}: the local one is used")
            return False
    missing = [path for path, size in zip(away, storage.sizes([*away]), strict=True) if size != away[path].size]
    for path in missing:
        reporting.log(f"{storage.url(path)} is missing, or has another size: it is made anew")
    return not missing


def _canonical(value: Mapping[str, Any]) -> str:
    return files.canonical_json(dict(value))
