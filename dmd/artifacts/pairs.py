"""Pairs of a manifest in a reproducible shuffled order, by random access, without loading them all."""

import contextlib
import resource
import threading
from collections.abc import Callable, Iterable

import numpy as np
import torch

from dmd.artifacts.manifest import Manifest
from dmd.artifacts.shards import Place, Shard
from dmd.artifacts.storage import Storage, open_shard

DESCRIPTORS = 2  # of an open shard: its file and its memory map
SPARE = 128  # descriptors for all else
Once = Callable[[int, Callable[[], None]], None]  # calls the second, unless that was done for shard number the first


def unshared(number: int, check: Callable[[], None]) -> None:
    """A shard is checked by every reader that needs it."""
    check()


class PairReader:
    """Position p of the stream is a pure function of (seed, p, manifest), so a resumed run reads on exactly.

    Several threads may read.
    """

    def __init__(self, manifest: Manifest, *, seed: int, once: Once = unshared, storage: Storage | None = None) -> None:
        """Opens nothing yet; a shard is checked against the manifest when it is first needed.

        `once` may leave the comparison of digests to another process. Shards that are missing are downloaded from
        `storage`, where there is one, and read from its cache.
        """
        self._manifest = manifest
        self._seed, self._once = seed, once
        self._offsets, self._lengths = manifest.numbers("offset"), manifest.numbers("length")
        self._firsts = np.array([shard.first for shard in manifest.shards])
        self._storage = storage
        fits = storage is None or storage.holds(manifest.shards)  # a file that is open takes room even if it is removed
        self._most = most_open(len(manifest.shards)) if fits else 1
        self._open: dict[int, Shard] = {}  # least recently used first
        self._checked: set[int] = set()
        self._order: tuple[tuple[int, int], np.ndarray] = ((-1, 0), np.empty(0, np.int64))
        self._lock = threading.Lock()  # of everything above that changes

    def __len__(self) -> int:
        return len(self._offsets)

    def batch(
        self, position: int, num: int, *, among: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pairs at positions position .. position + num - 1 of the endless shuffled stream.

        Args:
            among: how many pairs of the manifest there are, its first ones; None is all of them.

        Returns:
            noise float32 (num, C, H, W); label int64 (num,), or text states float32 (num, L, E) where pairs have them;
            image float32 (num, C, H, W).

        Raises:
            ValueError: a shard is missing or differs from the manifest.
        """
        with self._lock:
            rows = [self._row(place, among or len(self)) for place in range(position, position + num)]
            self._prepare(rows)
            items = [self._item(row) for row in rows]
            name = "text" if "text" in items[0] else "label"
            noise, label, image = (self._stacked(items, each) for each in ("noise", name, "image"))
        return noise, label, image

    def texts(self, rows: Iterable[int]) -> torch.Tensor:
        """Text states float32 (B, L, E) of rows of the manifest; ValueError if its pairs have none."""
        with self._lock:
            items = [self._item(row) for row in rows]
            if "text" not in items[0]:
                raise ValueError(f"{self._manifest.path}: its pairs hold no text states, but the teacher wants them")
            return self._stacked(items, "text")

    def _row(self, position: int, num: int) -> int:
        epoch, place = divmod(position, num)
        if self._order[0] != (epoch, num):
            self._order = (epoch, num), np.random.default_rng([self._seed, epoch]).permutation(num)
        return int(self._order[1][place])

    def _prepare(self, rows: list[int]) -> None:
        """Downloads what a batch needs, several shards at once, if all will stay."""
        if self._storage is not None and self._most > 1:
            numbers = {self._number(row) for row in rows} - self._checked
            self._storage.prepare([self._manifest.shards[number] for number in sorted(numbers)])

    def _number(self, row: int) -> int:
        """Of the shard that holds a row."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def _item(self, row: int) -> dict[str, np.ndarray]:
        number = self._number(row)
        shard = self._open.pop(number, None) or self._opened(number)
        self._open[number] = shard
        return shard.item(Place(int(self._offsets[row]), int(self._lengths[row])))

    def _stacked(self, items: list[dict[str, np.ndarray]], name: str) -> torch.Tensor:
        """One field of all items; half-precision values become float32."""
        try:
            values = np.stack([item[name] for item in items])
            return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float16 else values)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{self._manifest.path}: its rows are no pairs of one shape: {name}: {error}") from error

    def _opened(self, number: int) -> Shard:
        if len(self._open) == self._most:
            self._open.pop(next(iter(self._open))).close()
        file = self._manifest.shards[number]
        if number not in self._checked and (self._storage is None or file.path.is_file()):
            self._once(number, lambda: open_shard(file, None).close())
        self._checked.add(number)
        return open_shard(file, self._storage, checked=True)


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
