"""CLIP score: how well an image fits its caption, as the cosine between their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd.metrics.resizing import resized

Tokenise = Callable[[Sequence[str]], list[list[int]]]  # captions -> tokens, start and end included, not cut


class Clip(nn.Module):
    """Raw cosines of images and captions, neither cut off at 0 nor scaled (Radford et al. 2021).

    Args:
        network: transformers' CLIPModel.
        tokenise: captions to tokens.
        end: the token that ends a caption; captions are filled up with it, too.
        mean, std: of the three channels, of values 0 to 1.
    """

    def __init__(
        self, network: Any, *, tokenise: Tokenise, end: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.tokenise, self.end = tokenise, end
        self.size: int = network.config.vision_config.image_size
        self.length: int = network.config.text_config.max_position_embeddings
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, image: Tensor, captions: Sequence[str]) -> Tensor:
        """One cosine for each image and its caption.

        Images are resized by Pillow's bicubic filter to what the network sees; captions longer than it reads are cut.
        On a GPU in whole float32.

        Args:
            image: uint8 (B, 1 or 3, H, H).
            captions: B texts, prefix included.

        Returns:
            float32 (B,), on the CPU.

        Raises:
            ValueError: another number of captions than of images, or images that are not square.
        """
        if len(captions) != len(image):
            raise ValueError(f"captions: {len(captions)} for {len(image)} images")
        pixels = resized(image, size=self.size, filter="bicubic").expand(-1, 3, -1, -1)
        given = (pixels.to(self.mean.device) / 255 - self.mean) / self.std
        tokens = self._tokens(captions).to(self.mean.device)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found = self.network(input_ids=tokens, pixel_values=given)
        return (found.image_embeds * found.text_embeds).sum(1).float().cpu()

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """int64 (B, L)."""
        rows = [
            row if len(row) <= self.length else [*row[: self.length - 1], self.end] for row in self.tokenise(captions)
        ]
        return torch.tensor([row + [self.end] * (self.length - len(row)) for row in rows], dtype=torch.int64)


def metric_name(network: dict[str, Any]) -> str:
    """`clip` where the configuration pins the network's digest, else `clip-{name}`: {"name", "pinned"}."""
    return "clip" if network["pinned"] else f"clip-{network['name']}"
