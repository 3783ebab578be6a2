"""Rows of a manifest by random access: shards are checked when they are first needed, and kept open."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from dmd.data.manifest import Manifest
from dmd.data.shards import Item, Place, Shard
from dmd.data.storage import Storage, open_shard

DESCRIPTORS = 2  # of an open shard: its file and its memory map
SPARE = 128  # descriptors for all else
Once = Callable[[int, Callable[[], None]], None]  # calls the second, unless that was done for shard number the first


def unshared(number: int, check: Callable[[], None]) -> None:
    """A shard is checked by every reader that needs it."""
    check()


class ShardRows:
    """Items of a manifest by row. One thread at a time may read."""

    def __init__(self, manifest: Manifest, *, once: Once = unshared, storage: Storage | None = None) -> None:
        """Opens nothing yet; a shard is checked against the manifest when it is first needed.

        `once` may leave the comparison of digests to another process. Shards that are missing are downloaded from
        `storage`, where there is one, and read from its cache.
        """
        self.manifest = manifest
        self._once, self._storage = once, storage
        self._offsets, self._lengths = manifest.numbers("offset"), manifest.numbers("length")
        self._firsts = np.array([shard.first for shard in manifest.shards])
        fits = storage is None or storage.holds(manifest.shards)  # a file that is open takes room even if it is removed
        self._most = most_open(len(manifest.shards)) if fits else 1
        self._open: dict[int, Shard] = {}  # least recently used first
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self._offsets)

    def items(self, rows: Iterable[int]) -> list[Item]:
        """The items of some rows, in their order; ValueError if a shard is missing or differs from the manifest."""
        return [self._item(row) for row in rows]

    def prepare(self, rows: Iterable[int]) -> None:
        """Downloads what some rows need, several shards at once, if all will stay."""
        if self._storage is not None and self._most > 1:
            numbers = {self._number(row) for row in rows} - self._checked
            self._storage.prepare([self.manifest.shards[number] for number in sorted(numbers)])

    def stacked(self, items: list[Item], name: str) -> Tensor:
        """One field of all items; half-precision values become float32. ValueError if they are of several shapes."""
        try:
            values = np.stack([item[name] for item in items])
            return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float16 else values)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{self.manifest.path}: its rows are not of one shape: {name}: {error}") from error

    def _number(self, row: int) -> int:
        """Of the shard that holds a row."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def _item(self, row: int) -> Item:
        number = self._number(row)
        shard = self._open.pop(number, None) or self._opened(number)
        self._open[number] = shard
        return shard.item(Place(int(self._offsets[row]), int(self._lengths[row])))

    def _opened(self, number: int) -> Shard:
        if len(self._open) == self._most:
            self._open.pop(next(iter(self._open))).close()
        self.check(number)
        return open_shard(self.manifest.shards[number], self._storage, checked=True)

    def check(self, number: int) -> None:
        """Compares shard `number` with the manifest, where it is here and nobody did; ValueError if it differs."""
        file = self.manifest.shards[number]
        if number not in self._checked and (self._storage is None or file.path.is_file()):
            self._once(number, lambda: open_shard(file, None).close())
        self._checked.add(number)


def most_open(num: int) -> int:
    """How many of `num` shards may be open at once; raises this process's limit of descriptors as far as it may."""
    wanted = SPARE + DESCRIPTORS * num
    soft, hard = (
        wanted if one == resource.RLIM_INFINITY else one for one in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft < min(wanted, hard):
        with contextlib.suppress(ValueError, OSError):
            _, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), ceiling))
            soft = min(wanted, hard)
    return max(1, min(num, (soft - SPARE) // DESCRIPTORS))
