"""Reads pairs of a manifest in a reproducible shuffled order, and text states by row, without loading all."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import torch

from dmd.data.manifest import Manifest
from dmd.data.shard_rows import ShardRows, Verifier, verify_alone
from dmd.data.storage import LOCAL, ShardSource


class TextReader:
    """Text states of a manifest by row. Several threads may read."""

    def __init__(self, manifest: Manifest, *, verify: Verifier = verify_alone) -> None:
        self._rows, self._lock = ShardRows(manifest, verify=verify), threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def texts(self, rows: Iterable[int]) -> torch.Tensor:
        """Text states float32 (B, L, E); ValueError if the manifest holds none."""
        with self._lock:
            return self._rows.stacked(self._rows.items(rows), "text")


class PairReader:
    """Pairs at positions of an endless shuffled stream.

    The pair at position p is a pure function of (seed, p, manifest), so a resumed run reads exactly the same pairs.
    Several threads may read.
    """

    def __init__(
        self, manifest: Manifest, *, seed: int, verify: Verifier = verify_alone, source: ShardSource = LOCAL
    ) -> None:
        """Opens no shard; `verify` and `source` as in `ShardRows`."""
        self._rows, self._seed = ShardRows(manifest, verify=verify, source=source), seed
        self._order: tuple[tuple[int, int], np.ndarray] = ((-1, 0), np.empty(0, np.int64))
        self._lock = threading.Lock()  # for all of the above

    def __len__(self) -> int:
        return len(self._rows)

    def batch(
        self, position: int, num: int, *, among: int | None = None, last: str = "image"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pairs at positions position .. position + num - 1 of the endless shuffled stream.

        Args:
            among: the stream shuffles only the first `among` pairs of the manifest; None: all of them.
            last: the third value: "image", or "trajectory" for all kept states (num, M, C, H, W), the image last.

        Returns:
            noise float32 (num, C, H, W); label int64 (num,), or text states float32 (num, L, E) where pairs have them;
            image float32 (num, C, H, W).

        Raises:
            ValueError: a shard is missing or differs from the manifest.
        """
        with self._lock:
            rows = [self._row(each, among or len(self)) for each in range(position, position + num)]
            self._rows.prepare(rows)
            items = self._rows.items(rows)
            name = "text" if "text" in items[0] else "label"
            noise, label, image = (self._rows.stacked(items, each) for each in ("noise", name, last))
        return noise, label, image

    def texts(self, rows: Iterable[int]) -> torch.Tensor:
        """Text states float32 (B, L, E) of rows of the manifest; ValueError if its pairs hold none."""
        with self._lock:
            items = self._rows.items(rows)
            if "text" not in items[0]:
                path = self._rows.manifest.path
                raise ValueError(f"{path}: its pairs hold no text states, but the teacher needs them")
            return self._rows.stacked(items, "text")

    def _row(self, position: int, num: int) -> int:
        epoch, index = divmod(position, num)
        if self._order[0] != (epoch, num):
            self._order = (epoch, num), np.random.default_rng([self._seed, epoch]).permutation(num)
        return int(self._order[1][index])
