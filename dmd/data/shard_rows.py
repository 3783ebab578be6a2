"""Random access to rows of a manifest: a shard is verified when it is first needed, and stays open."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from dmd.data.manifest import Manifest
from dmd.data.shards import Extent, Item, Shard
from dmd.data.storage import LOCAL, ShardSource

DESCRIPTORS = 2  # of an open shard: its file and its memory map
SPARE = 128  # descriptors for everything else
Verifier = Callable[[int, Callable[[], None]], None]  # (shard number, check): calls `check` unless another process does


def verify_alone(number: int, check: Callable[[], None]) -> None:
    """The `Verifier` of a process that is alone: every reader verifies each shard itself."""
    check()


class ShardRows:
    """Items of a manifest by row. One thread at a time may read."""

    def __init__(self, manifest: Manifest, *, verify: Verifier = verify_alone, source: ShardSource = LOCAL) -> None:
        """Opens nothing yet.

        Args:
            verify: may leave the comparison of digests to another process, see `verification`.
            source: where shards are.
        """
        self.manifest = manifest
        self._verify, self._source = verify, source
        self._offsets, self._lengths = manifest.numbers("offset"), manifest.numbers("length")
        self._firsts = np.array([shard.first for shard in manifest.shards])
        # if the cache cannot hold all shards, one is open at a time: a removed file occupies the disk while it is open
        self._max_open = max_open(len(manifest.shards)) if source.holds(manifest.shards) else 1
        self._open: dict[int, Shard] = {}  # least recently used first
        self._verified: set[int] = set()

    def __len__(self) -> int:
        return len(self._offsets)

    def items(self, rows: Iterable[int]) -> list[Item]:
        """The items of some rows, in their order; ValueError if a shard is missing or differs from the manifest."""
        return [self._item(row) for row in rows]

    def prepare(self, rows: Iterable[int]) -> None:
        """Downloads the shards of some rows in parallel, if the cache has room for all shards of the manifest."""
        if self._max_open > 1:
            numbers = {self._number(row) for row in rows} - self._verified
            self._source.prepare([self.manifest.shards[number] for number in sorted(numbers)])

    def stacked(self, items: list[Item], name: str) -> Tensor:
        """One field of all items; half-precision values become float32. ValueError if their shapes differ."""
        try:
            values = np.stack([item[name] for item in items])
            return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float16 else values)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{self.manifest.path}: its rows differ in shape: {name}: {error}") from error

    def _number(self, row: int) -> int:
        """Number of the shard that holds a row."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def _item(self, row: int) -> Item:
        number = self._number(row)
        shard = self._open.pop(number, None) or self._open_shard(number)
        self._open[number] = shard
        return shard.item(Extent(int(self._offsets[row]), int(self._lengths[row])))

    def _open_shard(self, number: int) -> Shard:
        if len(self._open) == self._max_open:
            self._open.pop(next(iter(self._open))).close()
        self.verify(number)
        return self._source.open(self.manifest.shards[number])

    def verify(self, number: int) -> None:
        """Compares shard `number` with the manifest, unless that was done; ValueError if it differs."""
        if number not in self._verified:
            self._verify(number, lambda: self._source.verify(self.manifest.shards[number]))
        self._verified.add(number)


def max_open(num: int) -> int:
    """How many of `num` shards may be open at once; raises the limit of open files as far as needed and allowed."""
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
