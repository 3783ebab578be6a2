"""Images of teacher and student from the same noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmd.models.autoencoder import Codec
from dmd.sampling.sampler import Sampler

TEXT_BATCH_SIZE = 4  # images per call where the condition is text; latents are decoded one by one


class PairedSamplers:
    """A teacher and its student, whose images are to be compared.

    Attributes:
        shape: (C, H, W) of an image or latent of either sampler.
    """

    def __init__(self, teacher: Sampler, student: Sampler, codec: Codec | None) -> None:
        """`teacher` and `student` must draw images of the same shape; `codec` decodes latents."""
        self.shape = teacher.shape
        self._samplers, self._codec = {"teacher": teacher, "student": student}, codec

    def draw(self, seeds: range, **conditions: Tensor) -> dict[str, Tensor]:
        """Images float32 (N, C, H, W) of both samplers; the key is a title with the number of network calls.

        Args:
            seeds: one per image, N in all; an image's noise is drawn from its seed.
            conditions: `fixed_labels` and `states` of `Sampler.batches`, where the condition is text.
        """
        images: dict[str, Tensor] = {}
        arguments: dict[str, Any] = {"labels": "balanced", **conditions}
        for name, sampler in self._samplers.items():
            sampler.batch_size = TEXT_BATCH_SIZE if conditions else len(seeds)
            batches = list(sampler.batches(seeds, **arguments))
            calls = batches[0].network_calls
            title = f"{name}: {calls} network call{'s' if calls > 1 else ''}"
            images[title] = self._pixels(torch.cat([batch.image for batch in batches]), sampler.device)
        return images

    @torch.no_grad()
    def _pixels(self, images: Tensor, device: torch.device) -> Tensor:
        if self._codec is None:
            return images
        return torch.cat([self._codec.decode(latent.to(device)).cpu() for latent in images.split(1)])
