"""Reads the images of a block of samples in batches, and decodes latents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.data import manifest, shards
from dmd.models import loading

DECODED_AT_ONCE = 4  # latents: each takes gigabytes at 512 x 512 pixels

Batch = tuple[Tensor, Tensor]


class SampleImages:
    """Images float32 (B, C, H, W), about -1 to 1, and labels int64 (B,), in order; batches may cross shards.

    Args:
        samples: table of a block of sample shards; each shard is checked against its digest.
        autoencoder: file of the decoder of latents, which runs in full float32; not read if the samples are images.
        device: device of the autoencoder; the images are returned on the CPU.

    Raises:
        ValueError: latents without an autoencoder.
    """

    def __init__(
        self, samples: manifest.Manifest, *, batch_size: int, autoencoder: Path | None, device: torch.device
    ) -> None:
        self._samples, self._batch_size, self._device = samples, batch_size, device
        self._codec = None
        if samples.metadata["facts"].get("codec"):
            if autoencoder is None:
                raise ValueError(f"{samples.path} holds latents: give --autoencoder to decode them")
            self._codec = loading.load_codec(autoencoder).to(device)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        images: list[np.ndarray] = []
        labels: list[int] = []
        for part in self._samples.shards:
            with shards.Shard(part.path, size=part.size, sha256=part.sha256) as shard:
                for _, item in shard.items():
                    images.append(item["image"].astype(np.float32))
                    labels.append(int(item["label"]))
                    if len(images) == self._batch_size:
                        yield self._batch(images, labels)
                        images, labels = [], []
        if images:
            yield self._batch(images, labels)

    def _batch(self, images: list[np.ndarray], labels: list[int]) -> Batch:
        return self._decode(torch.from_numpy(np.stack(images))), torch.tensor(labels)

    @torch.no_grad()
    def _decode(self, samples: Tensor) -> Tensor:
        if self._codec is None:
            return samples
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            parts = [self._codec.decode(part.to(self._device)).cpu() for part in samples.split(DECODED_AT_ONCE)]
        return torch.cat(parts)
