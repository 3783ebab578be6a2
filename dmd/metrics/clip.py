"""CLIP score: the cosine between the embeddings of an image and its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd.metrics.resizing import resize

Tokenise = Callable[[Sequence[str]], list[list[int]]]  # captions -> tokens, with start and end, not truncated


class Clip(nn.Module):
    """Raw cosines of images and captions, neither clamped at 0 nor scaled (Radford et al. 2021).

    Args:
        network: transformers' CLIPModel.
        tokenise: captions to tokens.
        end: the token that ends a caption, and pads it.
        mean, std: of the three channels of images with values from 0 to 1.
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
        """The cosine of each image and its caption.

        Images are resized by Pillow's bicubic filter to the size of the network; captions that are too long are
        truncated. GPUs compute in full float32.

        Args:
            image: uint8 (B, 1 or 3, H, H).
            captions: B texts, with their prefix.

        Returns:
            float32 (B,), on the CPU.

        Raises:
            ValueError: another number of captions than of images, or images that are not square.
        """
        if len(captions) != len(image):
            raise ValueError(f"captions: {len(captions)} for {len(image)} images")
        return (self.images(image) * self.texts(captions)).sum(1)

    @torch.no_grad()
    def images(self, image: Tensor) -> Tensor:
        """Embeddings of length 1, float32 (B, E) on the CPU, of images as in `forward`."""
        pixels = resize(image, size=self.size, filter="bicubic").expand(-1, 3, -1, -1)
        normalised = (pixels.to(self.mean.device) / 255 - self.mean) / self.std
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            pooled = self.network.vision_model(pixel_values=normalised).pooler_output
            return _unit(self.network.visual_projection(pooled))

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of length 1, float32 (B, E) on the CPU, of captions as in `forward`."""
        tokens = self._tokens(captions).to(self.mean.device)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            pooled = self.network.text_model(input_ids=tokens).pooler_output
            return _unit(self.network.text_projection(pooled))

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """Padded tokens, int64 (B, L)."""
        rows = [
            row if len(row) <= self.length else [*row[: self.length - 1], self.end] for row in self.tokenise(captions)
        ]
        return torch.tensor([row + [self.end] * (self.length - len(row)) for row in rows], dtype=torch.int64)


def _unit(embedding: Tensor) -> Tensor:
    """Embeddings divided by their length, as transformers' CLIPModel does."""
    return (embedding / embedding.square().sum(-1, keepdim=True).sqrt()).float().cpu()


def metric_name(network: dict[str, Any]) -> str:
    """`clip` if the configuration pins the digest of the network {"name", "pinned"}, else `clip-{name}`."""
    return "clip" if network["pinned"] else f"clip-{network['name']}"
