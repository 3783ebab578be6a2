"""Sources of shards for readers: a local folder, or a storage, which has files of the folder under the same names.

A storage is a prefix in object storage or on a web server. A file there has its record beside it, which is written
after it, so a file without a record is incomplete. If a file is only in the storage, its local record says so under
"stored".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypedDict

from dmd.data import remote
from dmd.data.cache import DIGEST, GIGABYTE, Cache
from dmd.data.manifest import ShardFile
from dmd.data.shards import Shard
from dmd.provenance import record

AT_ONCE = 8  # downloads


class Settings(TypedDict, total=False):
    """Section `storage` of the configuration, and `folder`, the local folder that the prefix mirrors."""

    prefix: str
    folder: str
    cache: str
    cache_gb: float
    endpoint: str | None
    keep: bool


class ShardSource(Protocol):
    """Where a reader gets the shards of a manifest from."""

    def holds(self, files: Sequence[ShardFile]) -> bool:
        """Whether all these shards can be on this machine at the same time."""

    def prepare(self, files: Sequence[ShardFile]) -> None:
        """Copies remote shards to this machine."""

    def verify(self, file: ShardFile) -> None:
        """ValueError if a shard in its folder differs from its manifest."""

    def open(self, file: ShardFile) -> Shard:
        """Opens a shard that was verified; ValueError if it cannot be found."""


class LocalShards(ShardSource):
    """Shards in the folder that their manifest names."""

    def holds(self, files: Sequence[ShardFile]) -> bool:
        return True

    def prepare(self, files: Sequence[ShardFile]) -> None:
        pass

    def verify(self, file: ShardFile) -> None:
        self._open(file, file.sha256).close()

    def open(self, file: ShardFile) -> Shard:
        return self._open(file, None)

    def _open(self, file: ShardFile, sha256: str | None) -> Shard:
        if not file.path.is_file() and (location := record.storage_location(record.read(file.path))):
            url = f"{location.prefix}/{location.name}"
            raise ValueError(f"{file.path} is not here but at {url}: set `storage` with that prefix to read it")
        return Shard(file.path, size=file.size, sha256=sha256)


LOCAL = LocalShards()


class Storage(ShardSource):
    """A remote prefix that mirrors a folder, from which files may be missing. It connects when it is first used."""

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
        """Name of a file below the prefix; ValueError if it is not in the folder."""
        name = os.path.relpath(path, self._folder)
        if name.startswith(os.pardir):
            raise ValueError(
                f"{path} is not below {self._folder}, so it has no name below storage.prefix {self.prefix}"
            )
        return name.replace(os.sep, "/")

    def url(self, path: Path) -> str:
        """Address of a file in the storage, whether it is there or not."""
        return f"{self.prefix}/{self.name(path)}"

    def sizes(self, paths: Sequence[Path]) -> list[int | None]:
        """Bytes of each file in the storage, None where there is none."""
        names = [self.name(path) for path in paths]
        by_name = self._remote.sizes(names)
        return [by_name[name] for name in names]

    def record(self, path: Path) -> dict[str, Any] | None:
        """The record of a file in the storage, None where there is none or the file has another size.

        Raises:
            StorageError: the storage does not answer.
        """
        entry = record.parse(self._remote.read(self.name(record.sidecar(path))) or b"")
        if entry is None or not DIGEST.fullmatch(entry["sha256"]):
            return None
        return entry if self.sizes([path]) == [entry["size"]] else None

    def head(self, path: Path, num: int) -> bytes:
        """The first `num` bytes of a file in the storage."""
        return self._remote.read(self.name(path), num) or b""

    def fetch(self, path: Path, entry: dict[str, Any], target: Path) -> None:
        """Downloads a small file to exactly `target`; ValueError if its sha256 differs from its record `entry`."""
        content = self._remote.read(self.name(path), entry["size"] + 1) or b""
        if (digest := hashlib.sha256(content).hexdigest()) != entry["sha256"]:
            raise ValueError(
                f"{self.url(path)} is damaged: sha256 {digest}, its record says {entry['sha256']}: remove it"
            )
        target.write_bytes(content)

    def upload(self, path: Path) -> None:
        """Copies a file and its record to the storage and reads the file back, unless the storage has it.

        Raises:
            ValueError: what is read back differs, or the file has no record.
        """
        if not (self.writable and isinstance(self._remote, remote.ObjectStorage)):  # the second for mypy
            raise ValueError(f"{self.url(path)} cannot be written: a storage.prefix on a web server is read-only")
        own = record.read(path)
        if own is None:
            raise ValueError(f"{path} has no record beside it: run `make verify`")
        stored = self.record(path)
        if stored is not None and stored["sha256"] == own["sha256"]:
            return
        side = record.sidecar(path)
        self._remote.remove(self.name(side))
        self._remote.upload(path, self.name(path))
        digest = self._remote.digest(self.name(path), path.stat().st_size)
        if digest != own["sha256"]:
            raise ValueError(f"{self.url(path)} was damaged in upload: sha256 {digest}, not {own['sha256']}: run again")
        self._remote.upload(side, self.name(side))

    def remove_local(self, path: Path, entry: dict[str, Any] | None = None) -> None:
        """Removes the local file, if it is there, and writes in its record, or in `entry`, that the storage has it."""
        stored = {"prefix": self.prefix, "name": self.name(path), "endpoint": self.endpoint}
        record.write(path, {**(entry or record.read(path) or {}), "stored": stored})
        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def cached(self, file: ShardFile) -> Iterator[Path]:
        """Path of a file's copy in the cache, for as long as the block lasts."""
        name = self.name(file.path)

        def download(partial: Path) -> str:
            return self._remote.download(name, partial, file.size)

        with self.cache.entry(self.url(file.path), size=file.size, sha256=file.sha256, download=download) as path:
            yield path

    def prepare(self, files: Sequence[ShardFile]) -> None:
        """Downloads the shards that are not in the folder into the cache, several at once."""

        def download(file: ShardFile) -> None:
            with self.cached(file):
                pass

        away = [file for file in files if not file.path.is_file()]
        if len(away) > 1:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(download, away))

    def verify(self, file: ShardFile) -> None:
        if file.path.is_file():  # the cache compares digests itself
            LOCAL.verify(file)

    def open(self, file: ShardFile) -> Shard:
        if file.path.is_file():
            return LOCAL.open(file)
        with self.cached(file) as path:
            return Shard(path, size=file.size)

    def holds(self, files: Sequence[ShardFile]) -> bool:
        """Whether the cache has room for all shards that are not in the folder; logs a warning where it has not."""
        away = [file.size for file in files if not file.path.is_file()]
        if fits := sum(away) <= self.cache.limit:
            self._log(f"{len(away)} of {len(files)} shards, {sum(away) / GIGABYTE:.3g} GB, are read from {self.prefix}")
        else:
            self._log(
                f"WARNING: {sum(away) / GIGABYTE:.3g} GB of shards are read from {self.prefix}, but storage.cache_gb "
                f"is {self.cache.limit / GIGABYTE:g}: shards will be downloaded again and again; raise it"
            )
        return fits
