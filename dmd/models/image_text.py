"""A CLIP with its tokenizer: images and captions to embeddings that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models import sizes
from dmd.models.text_encoder import clip_tokenizer

MEAN, STD = 0.5, 0.5  # of all channels, so that the network takes images in [-1, 1] as they are


class ImageText(nn.Module):
    """transformers' CLIPModel.

    Args:
        config: arguments of CLIPConfig: `text_config`, `vision_config`, `projection_dim`.
        tokenizer: contents by name of the files of the tokenizer.

    Attributes:
        clip: the network.
        length: tokens of a text.

    Raises:
        ValueError: arguments that cannot be used, or more tokens than the network has.
    """

    def __init__(self, *, config: Mapping[str, Any], tokenizer: Mapping[str, str]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from transformers import CLIPConfig, CLIPModel

        with sizes.making("CLIPModel", config):
            arguments = CLIPConfig(**config)
            self.clip: Any = CLIPModel(arguments)
        self._tokenizer = clip_tokenizer(tokenizer)
        self.length = int(arguments.text_config.max_position_embeddings)
        if len(self._tokenizer) > arguments.text_config.vocab_size:
            tokens = arguments.text_config.vocab_size
            raise ValueError(f"tokenizer: {len(self._tokenizer)} tokens, but the network has {tokens}")

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of images (B, 3, R, R) in [-1, 1] and of tokens (B, L), both (B, E) of length 1; their scale."""
        output = self.clip(input_ids=tokens, pixel_values=image)
        return output.image_embeds, output.text_embeds, self.clip.logit_scale.exp()

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Padded tokens, int64 (B, L), on the CPU; texts that are too long lose their last tokens."""
        end = self._tokenizer.eos_token_id
        rows = self._tokenizer(list(texts), truncation=False, verbose=False).input_ids
        rows = [row if len(row) <= self.length else [*row[: self.length - 1], end] for row in rows]
        return torch.tensor([row + [end] * (self.length - len(row)) for row in rows], dtype=torch.int64)
