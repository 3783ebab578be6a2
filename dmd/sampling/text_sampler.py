"""Images from prompts: text encoder, sampler and autoencoder in one callable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd.models import loading
from dmd.sampling.sampler import MAX_BATCH_SIZE, Sampler, check_seeds
from dmd.sampling.sampler import load as load_sampler


class TextSampler:
    """Draws images from prompts.

    Attributes:
        sampler: draws latents or images.
        text: the text encoder.
        codec: decodes latents; None if there is no autoencoder.
    """

    def __init__(self, sampler: Sampler, text_encoder: Path, autoencoder: Path | None) -> None:
        """Loads text encoder and autoencoder; ValueError if the text encoder does not fit the denoiser."""
        self.sampler = sampler
        self.text = loading.load_text(text_encoder).to(sampler.device)
        self.codec: Any = None if autoencoder is None else loading.load_codec(autoencoder).to(sampler.device)
        expected = sampler.metadata.get("text")
        if expected is None:
            raise ValueError("text_encoder: the condition of this denoiser is not text")
        if (self.text.length, self.text.width) != (expected["length"], expected["width"]):
            actual = {"length": self.text.length, "width": self.text.width}
            raise ValueError(f"{text_encoder} makes text states {actual}, the denoiser takes {expected}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.sampler.shape if self.codec is None else tuple(self.sampler.metadata["image_shape"])

    @torch.no_grad()
    def __call__(self, prompt: str | Sequence[str], *, num: int | None = None, seed: int = 0) -> Tensor:
        """Images of seeds seed, seed + 1, ..., the same ones as those of stage `sample` for these prompts.

        Args:
            prompt: one for all images, or a list with one per image.
            num: number of images; None: the number of prompts.
            seed: of the first image.

        Returns:
            float32 (num, C, H, W) in about [-1, 1], on the CPU: pixels, or latents without an autoencoder.

        Raises:
            ValueError: no prompt, an empty one, not as many as `num`, or a seed out of range.
        """
        prompts = _prompt_list(prompt, num)
        check_seeds(len(prompts), seed)
        distinct = list(dict.fromkeys(prompts))
        size = self.sampler.batch_size or MAX_BATCH_SIZE
        parts = [distinct[start : start + size] for start in range(0, len(distinct), size)]
        encoded = dict(zip(distinct, torch.cat([self.text.encode(part).states for part in parts]), strict=True))
        states = torch.stack([encoded[text] for text in prompts])
        images = []
        for batch in self.sampler.batches(range(seed, seed + len(prompts)), states=states):
            image = batch.image
            images.append(
                image if self.codec is None else self.codec.decode(image.to(self.sampler.device)).float().cpu()
            )
        return torch.cat(images)


def _prompt_list(prompt: str | Sequence[str], num: int | None) -> list[str]:
    """One prompt per image."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [str(prompt)] * (1 if num is None else num)
    if num is not None and len(prompts) != num:
        raise ValueError(f"prompt: {len(prompts)} prompts for num {num}: give one prompt or {num}")
    if not isinstance(prompt, (str, list, tuple)) or not all(
        isinstance(text, str) and text.strip() for text in prompts
    ):
        raise ValueError(f"prompt: {f'{prompt!r}':.200} is neither a non-empty text nor a list of non-empty texts")
    return prompts


def load(
    path: str | Path,
    *,
    text_encoder: str | Path,
    autoencoder: str | Path | None,
    guidance: float | None,
    **options: Any,
) -> TextSampler:
    """See `dmd.load`."""
    denoiser = load_sampler(path, guidance=guidance, **options)
    return TextSampler(denoiser, Path(text_encoder), None if autoencoder is None else Path(autoencoder))
