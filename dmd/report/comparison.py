"""Teacher and generator, drawing from the same noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmd.models.autoencoder import Codec
from dmd.sampling.sampler import Sampler

AT_ONCE = 4  # images of text; latents are decoded one by one


class PairedSamplers:
    """Two denoisers whose images are to be compared.

    Attributes:
        shape: (C, H, W) of what they draw.
    """

    def __init__(self, teacher: Sampler, generator: Sampler, codec: Codec | None) -> None:
        """Two that draw the same shape; `codec` decodes latents."""
        self.shape = teacher.shape
        self._samplers, self._codec = {"teacher": teacher, "generator": generator}, codec

    def draw(self, seeds: range, **conditions: Tensor) -> dict[str, Tensor]:
        """Images float32 (N, C, H, W) of both by a title that says their cost.

        Args:
            seeds: N of them.
            conditions: `given` and `states` of `Sampler.batches`, where the condition is text.
        """
        found: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {"labels": "balanced", **conditions}
        for name, sampler in self._samplers.items():
            sampler.batch_size = AT_ONCE if conditions else len(seeds)
            batches = list(sampler.batches(seeds, **numbers))
            calls = batches[0].network_calls
            title = f"{name}: {calls} network call{'s' if calls > 1 else ''}"
            found[title] = self._pixels(torch.cat([batch.image for batch in batches]), sampler.device)
        return found

    @torch.no_grad()
    def _pixels(self, images: Tensor, device: torch.device) -> Tensor:
        if self._codec is None:
            return images
        return torch.cat([self._codec.decode(latent.to(device)).cpu() for latent in images.split(1)])
