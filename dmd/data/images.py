"""Images of a dataset as shards with an index: named splits, classes and sigma_data stand in the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.data import manifest as manifests
from dmd.data import shards
from dmd.data.dataset import SPLITS, scaled
from dmd.data.manifest import Manifest
from dmd.data.shard_rows import Once, ShardRows, unshared

IN_MEMORY = 2**28  # bytes of shards that are read whole, which is faster


class ImageReader:
    """One split of a manifest of images, read by random access where it is too large for memory.

    Attributes:
        shape: (C, H, W) of an image.
        labels: int64 (N,), class index or -1.
        num_classes: classes a denoiser is conditioned on; 0 = unconditional.
        sigma_data: standard deviation of the training split.
        sha256: digest of the whole dataset, see `Dataset`.
        splits: names of all splits.
        name: kind of the dataset.
        modes: means of a mixture's modes, None of all others.
    """

    def __init__(self, path: Path, split: str, *, once: Once = unshared, in_memory: int = IN_MEMORY) -> None:
        """path: images/manifest.parquet.

        Raises:
            ValueError: it is no manifest of images, has no such split, or a shard differs from it.
        """
        manifest = manifests.read(path)
        facts = manifest.metadata.get("facts", {})
        if split not in facts.get("splits", {}):
            known = ", ".join(facts.get("splits", {})) or "none, it is no manifest of images"
            raise ValueError(f"{path} has no split {split!r}; its splits are {known}")
        first, stop = facts["splits"][split]
        self._first = first
        self.labels = torch.from_numpy(manifest.numbers("label")[first:stop].copy())
        self.shape: tuple[int, ...] = tuple(facts["shape"])
        self.num_classes: int = facts["num_classes"]
        self.sigma_data: float = facts["sigma_data"]
        self.sha256: str = facts["dataset_sha256"]
        self.splits: list[str] = [*facts["splits"]]
        self.name: str = facts["name"]
        self.modes: list[list[float]] | None = facts["modes"]
        self._rows = ShardRows(manifest, once=once)
        small = sum(shard.size for shard in manifest.shards) <= in_memory
        self._stored = _whole(self._rows, manifest, first, stop) if small else None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at int64 `indices` (B,) as float32 in [-1, 1], shape (B, C, H, W)."""
        if self._stored is not None:
            return scaled(self._stored[indices])
        items = self._rows.items((indices + self._first).tolist())
        return scaled(self._rows.stacked(items, "image"))


def _whole(rows: ShardRows, manifest: Manifest, first: int, stop: int) -> Tensor:
    """All images of a split, in order; its shards are checked on the way."""
    images: list[np.ndarray] = []
    for number, shard in enumerate(manifest.shards):
        if shard.first < stop and shard.first + shard.num > first:
            rows.check(number)
            wanted = range(max(first, shard.first), min(stop, shard.first + shard.num))
            images += [item["image"].copy() for index, item in shards.read(shard.path) if index in wanted]
    return torch.from_numpy(np.stack(images))


def splits_of(counts: dict[str, int]) -> dict[str, list[int]]:
    """First row and the row behind the last one of each split, in the order of `SPLITS`."""
    found, first = {}, 0
    for split in SPLITS:
        if num := counts.get(split, 0):
            found[split] = [first, first + num]
            first += num
    return found


def items(parts: Iterator[tuple[Tensor, Tensor]], first: int) -> Iterator[tuple[int, shards.Item]]:
    """(row, fields) of images and labels that come in pieces."""
    for stored, labels in parts:
        for image, label in zip(stored.numpy(), labels.numpy(), strict=True):
            yield first, {"image": image, "label": label}
            first += 1
