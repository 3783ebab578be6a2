"""Pairs of a manifest in a reproducible shuffled order, by random access, without loading them all."""

import contextlib
import resource

import numpy as np
import torch

from dmd.artifacts.manifest import Manifest
from dmd.artifacts.shards import Place, Shard

DESCRIPTORS = 2  # of an open shard: its file and its memory map
SPARE = 128  # descriptors for all else


class PairReader:
    """Position p of the stream is a pure function of (seed, p, manifest), so a resumed run reads on exactly."""

    def __init__(self, manifest: Manifest, *, seed: int) -> None:
        """Opens nothing yet; a shard is checked against the manifest when it is first needed."""
        self._manifest = manifest
        self._seed = seed
        self._offsets = manifest.table["offset"].to_numpy()
        self._lengths = manifest.table["length"].to_numpy()
        self._shard_of = np.repeat(np.arange(len(manifest.shards)), [shard.num for shard in manifest.shards])
        self._most = most_open(len(manifest.shards))
        self._open: dict[int, Shard] = {}  # least recently used first
        self._checked: set[int] = set()
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._offsets)

    def batch(self, position: int, num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pairs at positions position .. position + num - 1 of the endless shuffled stream.

        Returns:
            noise (num, C, H, W), label int64 (num,) or, where the pairs hold them, text states (num, L, E), and image
            (num, C, H, W); float32, however they are stored.

        Raises:
            ValueError: a shard is missing or differs from the manifest.
        """
        items = [self._item(self._row(place)) for place in range(position, position + num)]
        condition = "text" if "text" in items[0] else "label"
        noise, label, image = (
            torch.from_numpy(np.stack([item[name] for item in items])) for name in ("noise", condition, "image")
        )
        return noise, label.float() if label.is_floating_point() else label, image.float()

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self))
        return int(self._order[1][place])

    def _item(self, row: int) -> dict[str, np.ndarray]:
        number = int(self._shard_of[row])
        shard = self._open.pop(number, None) or self._opened(number)
        self._open[number] = shard
        return shard.item(Place(int(self._offsets[row]), int(self._lengths[row])))

    def _opened(self, number: int) -> Shard:
        if len(self._open) == self._most:
            self._open.pop(next(iter(self._open))).close()
        file = self._manifest.shards[number]
        shard = Shard(file.path, size=file.size, sha256=None if number in self._checked else file.sha256)
        self._checked.add(number)
        return shard


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
