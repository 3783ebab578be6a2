"""Files of a folder that may lie elsewhere: under a prefix of object storage or of a web server, by the same names.

Beside each file there lies its record, written last: a file without one is not whole. A local record of a file that is
only there says so under "stored".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from dmd.data import remote
from dmd.data.cache import DIGEST, GIGABYTE, Cache
from dmd.data.manifest import ShardFile
from dmd.data.shards import Shard
from dmd.provenance import record

AT_ONCE = 8  # downloads


class Settings(TypedDict, total=False):
    """Section `storage` of the configuration, and `folder`, the local one that the prefix mirrors."""

    prefix: str
    folder: str
    cache: str
    cache_gb: float
    endpoint: str | None
    keep: bool


class Storage:
    """Where the shards of a folder are when they are not in it. Connects when it is first asked."""

    def __init__(self, settings: Settings, *, log: Callable[[str], None] = lambda line: None) -> None:
        self.prefix, self.keep = settings["prefix"].rstrip("/"), settings.get("keep", True)
        self.endpoint, self._folder, self._log = settings.get("endpoint"), Path(settings["folder"]), log
        self.writable = not self.prefix.startswith("http")
        limit = int(settings["cache_gb"] * GIGABYTE)
        self.cache = Cache(Path(settings["cache"]), limit=limit, log=log)

    @cached_property
    def _remote(self) -> remote.Remote:
        return remote.connect(self.prefix, endpoint=self.endpoint, log=self._log)

    def name(self, path: Path) -> str:
        """Name of a file below the prefix; ValueError if it is not in the folder that the prefix mirrors."""
        name = os.path.relpath(path, self._folder)
        if name.startswith(os.pardir):
            raise ValueError(
                f"{path} is not below {self._folder}, so that storage.prefix {self.prefix} has no place for it"
            )
        return name.replace(os.sep, "/")

    def url(self, path: Path) -> str:
        """Where a file lies, or would lie, in the storage."""
        return f"{self.prefix}/{self.name(path)}"

    def sizes(self, paths: Sequence[Path]) -> list[int | None]:
        """Bytes of each file in the storage, None where there is none."""
        names = [self.name(path) for path in paths]
        found = self._remote.sizes(names)
        return [found[name] for name in names]

    def record(self, path: Path) -> dict[str, Any] | None:
        """The record of a file in the storage, None where there is none or the file has another size.

        Raises:
            StorageError: the storage does not say.
        """
        entry = record.parse(self._remote.read(self.name(record.sidecar(path))) or b"")
        if entry is None or not DIGEST.fullmatch(entry["sha256"]):
            return None
        return entry if self.sizes([path]) == [entry["size"]] else None

    def head(self, path: Path, num: int) -> bytes:
        """The first `num` bytes of a file in the storage."""
        return self._remote.read(self.name(path), num) or b""

    def fetch(self, path: Path, entry: dict[str, Any], target: Path) -> None:
        """Downloads a small file whose record is `entry` to exactly `target`; ValueError if it is another."""
        content = self._remote.read(self.name(path)) or b""
        if (digest := hashlib.sha256(content).hexdigest()) != entry["sha256"]:
            raise ValueError(
                f"{self.url(path)} is damaged: sha256 {digest}, its record says {entry['sha256']}: remove it"
            )
        target.write_bytes(content)

    def upload(self, path: Path) -> None:
        """Copies a file with its record there and reads it back, unless it is there already.

        Raises:
            ValueError: what is read back differs, or the file has no record.
        """
        if not (self.writable and isinstance(self._remote, remote.ObjectStorage)):  # the second for mypy
            raise ValueError(f"{self.url(path)} cannot be written: storage.prefix of a web server is to read only")
        own = record.read(path)
        if own is None:
            raise ValueError(f"{path} has no record beside it: run `make verify`")
        there = self.record(path)
        if there is not None and there["sha256"] == own["sha256"]:
            return
        side = record.sidecar(path)
        self._remote.remove(self.name(side))
        self._remote.upload(path, self.name(path))
        digest = self._remote.digest(self.name(path), path.stat().st_size)
        if digest != own["sha256"]:
            raise ValueError(f"{self.url(path)} did not arrive whole: sha256 {digest}, not {own['sha256']}: run again")
        self._remote.upload(side, self.name(side))

    def drop(self, path: Path) -> None:
        """Removes a local file that is in the storage; its record says where it is."""
        self.note(path, record.read(path) or {})
        path.unlink(missing_ok=True)

    def note(self, path: Path, entry: dict[str, Any]) -> None:
        """Writes the record of a file that is only in the storage."""
        stored = {"prefix": self.prefix, "name": self.name(path), "endpoint": self.endpoint}
        record.write(path, {**entry, "stored": stored})

    @contextlib.contextmanager
    def cached(self, file: ShardFile) -> Iterator[Path]:
        """Path of a file's copy in the cache, for as long as the block lasts."""
        name = self.name(file.path)

        def download(partial: Path) -> str:
            return self._remote.download(name, partial, file.size)

        with self.cache.entry(self.url(file.path), size=file.size, sha256=file.sha256, download=download) as path:
            yield path

    def prepare(self, shards: Sequence[ShardFile]) -> None:
        """Brings those shards into the cache that are not in the folder, several at once."""

        def bring(file: ShardFile) -> None:
            with self.cached(file):
                pass

        away = [file for file in shards if not file.path.is_file()]
        if len(away) > 1:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(bring, away))

    def holds(self, shards: Sequence[ShardFile]) -> bool:
        """Whether the cache has room for all shards that are not in the folder; says so where it has not."""
        away = [file.size for file in shards if not file.path.is_file()]
        if fits := sum(away) <= self.cache.limit:
            self._log(
                f"{len(away)} of {len(shards)} shards, {sum(away) / GIGABYTE:.3g} GB, are read from {self.prefix}"
            )
        else:
            self._log(
                f"WARNING: {sum(away) / GIGABYTE:.3g} GB of shards are read from {self.prefix}, but storage.cache_gb "
                f"is {self.cache.limit / GIGABYTE:g}: shards will be downloaded again and again; raise it"
            )
        return fits


def open_shard(file: ShardFile, storage: Storage | None, *, checked: bool = False) -> Shard:
    """A shard, from its folder where it is there, else from the cache of the storage.

    Args:
        checked: whether this process has compared it with its digest before.

    Raises:
        ValueError: the shard is nowhere, or differs from what its manifest says.
    """
    if storage is None and not file.path.is_file() and (location := record.storage_location(record.read(file.path))):
        where = f"{location.prefix}/{location.name}"
        raise ValueError(f"{file.path} is not here but at {where}: give `storage`, with that prefix, to read it")
    if storage is None or file.path.is_file():
        return Shard(file.path, size=file.size, sha256=None if checked else file.sha256)
    with storage.cached(file) as path:
        return Shard(path, size=file.size)
