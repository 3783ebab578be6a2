"""Images of a dataset in shards, whose manifest names splits, classes and sigma_data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.data import captions as caption_fields
from dmd.data import manifest as manifests
from dmd.data import shards
from dmd.data.captions import Captions
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
        self._images: Tensor | None = None
        self._captions: list[Captions] | None = None
        if small:
            self._images, self._captions = _read_split(self._rows, manifest, first, stop)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at int64 `indices` (B,) as float32 in [-1, 1], shape (B, C, H, W)."""
        if self._images is not None:
            return as_float(self._images[indices])
        items = self._rows.items((indices + self._first).tolist())
        return as_float(self._rows.stacked(items, "image"))

    def captions(self, indices: Tensor) -> list[Captions]:
        """The captions of the images at int64 `indices` (B,)."""
        if self._captions is not None:
            return [self._captions[index] for index in indices.tolist()]
        return [caption_fields.of_fields(item) for item in self._rows.items((indices + self._first).tolist())]


def _read_split(rows: ShardRows, manifest: Manifest, first: int, stop: int) -> tuple[Tensor, list[Captions]]:
    """All images of a split, in order, and their captions; each shard is verified before it is read."""
    images: list[np.ndarray] = []
    captions: list[Captions] = []
    for number, shard in enumerate(manifest.shards):
        if shard.first < stop and shard.first + shard.num > first:
            rows.verify(number)
            wanted = range(max(first, shard.first), min(stop, shard.first + shard.num))
            for index, item in shards.read(shard.path):
                if index in wanted:
                    images.append(item["image"].copy())
                    captions.append(caption_fields.of_fields(item))
    return torch.from_numpy(np.stack(images)), captions


def split_rows(counts: dict[str, int]) -> dict[str, list[int]]:
    """First row of each split and the row after its last one; splits lie in the order of `SPLITS`."""
    rows, first = {}, 0
    for split in SPLITS:
        if num := counts.get(split, 0):
            rows[split] = [first, first + num]
            first += num
    return rows


def items(
    parts: Iterable[tuple[Tensor, Tensor]], captions: Iterable[Captions] | None = None
) -> Iterator[tuple[int, shards.Item]]:
    """Yields (row, fields) of images and labels, which come in parts, and of their captions, if they have any."""
    each = itertools.repeat(None) if captions is None else iter(captions)
    row = 0
    for values, labels in parts:
        for image, label in zip(values.numpy(), labels.numpy(), strict=True):
            own = next(each)
            yield row, {"image": image, "label": label, **(own.fields() if own else {})}
            row += 1


def in_shards(rows: Iterator[tuple[int, shards.Item]], size: int) -> Iterator[Iterator[tuple[int, shards.Item]]]:
    """The rows of each shard of `size` rows; the last may have fewer."""
    while first := next(rows, None):
        yield itertools.chain([first], itertools.islice(rows, size - 1))


class Statistics:
    """Shape and standard deviation of images.

    Attributes:
        shape: (C, H, W) as a list; empty until images were added.
    """

    def __init__(self) -> None:
        self.shape: list[int] = []
        self._count, self._total, self._squares = 0, 0.0, 0.0

    def add(self, images: Tensor) -> None:
        """Counts images (B, C, H, W), float or uint8 levels."""
        self.shape = [*images.shape[1:]]
        values = as_float(images).double()
        self._count += values.numel()
        self._total += values.sum().item()
        self._squares += values.square().sum().item()

    @property
    def std(self) -> float:
        """Of all values."""
        return float(np.sqrt(self._squares / self._count - (self._total / self._count) ** 2))
