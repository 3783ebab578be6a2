"""Images of a dataset in shards, whose manifest names splits, classes and sigma_data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.data import manifest as manifests
from dmd.data import shards
from dmd.data.dataset import SPLITS, as_float
from dmd.data.manifest import Manifest
from dmd.data.shard_rows import ShardRows, Verifier, verify_alone

IN_MEMORY = 2**28  # bytes of shards, up to which all images are held in memory, for speed


class ImageReader:
    """One split of a manifest of images, held in memory or, if it is too large, read by random access.

    Attributes:
        shape: (C, H, W) of an image.
        labels: int64 (N,), class index or -1.
        num_classes: classes a denoiser is conditioned on; 0 = unconditional.
        sigma_data: standard deviation of the training split.
        sha256: digest of the whole dataset, see `Dataset`.
        splits: names of all splits.
        name: kind of the dataset; of IDX files the name of their folder.
        modes: means of the components of a mixture; None for other datasets.
    """

    def __init__(self, path: Path, split: str, *, verify: Verifier = verify_alone, in_memory: int = IN_MEMORY) -> None:
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
        self._rows = ShardRows(manifest, verify=verify)
        small = sum(shard.size for shard in manifest.shards) <= in_memory
        self._images = _read_split(self._rows, manifest, first, stop) if small else None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at int64 `indices` (B,) as float32 in [-1, 1], shape (B, C, H, W)."""
        if self._images is not None:
            return as_float(self._images[indices])
        items = self._rows.items((indices + self._first).tolist())
        return as_float(self._rows.stacked(items, "image"))


def _read_split(rows: ShardRows, manifest: Manifest, first: int, stop: int) -> Tensor:
    """All images of a split, in order; each shard is verified before it is read."""
    images: list[np.ndarray] = []
    for number, shard in enumerate(manifest.shards):
        if shard.first < stop and shard.first + shard.num > first:
            rows.verify(number)
            wanted = range(max(first, shard.first), min(stop, shard.first + shard.num))
            images += [item["image"].copy() for index, item in shards.read(shard.path) if index in wanted]
    return torch.from_numpy(np.stack(images))


def split_rows(counts: dict[str, int]) -> dict[str, list[int]]:
    """First row of each split and the row after its last one; splits lie in the order of `SPLITS`."""
    rows, first = {}, 0
    for split in SPLITS:
        if num := counts.get(split, 0):
            rows[split] = [first, first + num]
            first += num
    return rows


def items(parts: Iterator[tuple[Tensor, Tensor]], first: int) -> Iterator[tuple[int, shards.Item]]:
    """Yields (row, fields) of images and labels, which come in parts; rows count from `first`."""
    for values, labels in parts:
        for image, label in zip(values.numpy(), labels.numpy(), strict=True):
            yield first, {"image": image, "label": label}
            first += 1
