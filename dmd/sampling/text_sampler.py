"""Images from prompts: a sampler with the text encoder before it and the autoencoder behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd.models import loading
from dmd.sampling import sampler
from dmd.sampling.sampler import MOST_AT_ONCE, Sampler, check_seeds


class TextSampler:
    """Draws images of prompts.

    Attributes:
        sampler: draws latents, or images where there is no autoencoder.
        text: the text encoder.
        codec: decodes latents; None where none was given.
    """

    def __init__(self, drawing: Sampler, text_encoder: Path, autoencoder: Path | None) -> None:
        """Reads text encoder and autoencoder; ValueError if they do not fit the sampler's denoiser."""
        self.sampler = drawing
        self.text = loading.load_text(text_encoder).to(drawing.device)
        self.codec: Any = None if autoencoder is None else loading.load_codec(autoencoder).to(drawing.device)
        wanted = drawing.metadata.get("text")
        if wanted is None:
            raise ValueError("text_encoder: this denoiser knows no text")
        if (self.text.length, self.text.width) != (wanted["length"], wanted["width"]):
            found = {"length": self.text.length, "width": self.text.width}
            raise ValueError(f"{text_encoder} makes text states {found}, the denoiser reads {wanted}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.sampler.shape if self.codec is None else tuple(self.sampler.metadata["image_shape"])

    @torch.no_grad()
    def __call__(self, prompt: str | Sequence[str], *, num: int | None = None, seed: int = 0) -> Tensor:
        """Images of seeds seed, seed + 1, ..., the same ones that stage `sample` draws of them and these prompts.

        Args:
            prompt: one for all images, or one for each.
            num: how many; where None, as many as there are prompts.
            seed: of the first image.

        Returns:
            float32 (num, C, H, W) in about [-1, 1], on the CPU: pixels, or latents where there is no autoencoder.

        Raises:
            ValueError: no prompt, an empty one, not as many as `num`, or a seed out of range.
        """
        prompts = _listed(prompt, num)
        check_seeds(len(prompts), seed)
        distinct = list(dict.fromkeys(prompts))
        size = self.sampler.batch_size or MOST_AT_ONCE
        parts = [distinct[start : start + size] for start in range(0, len(distinct), size)]
        encoded = dict(zip(distinct, torch.cat([self.text.encode(part).states for part in parts]), strict=True))
        states = torch.stack([encoded[text] for text in prompts])
        images = []
        for batch in self.sampler.batches(range(seed, seed + len(prompts)), states=states):
            found = batch.image
            images.append(
                found if self.codec is None else self.codec.decode(found.to(self.sampler.device)).float().cpu()
            )
        return torch.cat(images)


def _listed(prompt: str | Sequence[str], num: int | None) -> list[str]:
    """One prompt for each image."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [str(prompt)] * (1 if num is None else num)
    if num is not None and len(prompts) != num:
        raise ValueError(f"prompt: {len(prompts)} prompts for num {num}: give one prompt or {num}")
    if not isinstance(prompt, (str, list, tuple)) or not all(
        isinstance(text, str) and text.strip() for text in prompts
    ):
        raise ValueError(f"prompt: {f'{prompt!r}':.200} is empty or no text, or has one that is")
    return prompts


def load(
    path: str | Path, *, text_encoder: str | Path, autoencoder: str | Path | None, guidance: float, **numbers: Any
) -> TextSampler:
    """See `dmd.load`."""
    found = sampler.load(path, guidance=guidance, **numbers)
    return TextSampler(found, Path(text_encoder), None if autoencoder is None else Path(autoencoder))
