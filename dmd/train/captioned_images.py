"""Streams of images for trainings that start from random weights: changed at random, with a caption of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.pipeline_sections import Augmentation
from dmd.data.image_shards import ImageReader
from dmd.methods.base import Part, Rows
from dmd.train import augmentation

Encode = Callable[[Sequence[str]], Rows]  # captions to fields of rows


@dataclass(frozen=True)
class AugmentedStream:
    """Images drawn uniformly, with replacement, and changed at random."""

    images: ImageReader
    section: Augmentation

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """image float32 (b, C, H, W) in [-1, 1]; row int64 (b,), the number of the image."""
        rows = torch.randint(len(self.images), (part.size,), generator=random)[mine]
        values = augmentation.draw(part.size, random)[mine]
        return {"image": augmentation.changed(self.images.batch(rows), self.section, values), "row": rows}


@dataclass(frozen=True)
class CaptionedStream:
    """The rows of a stream of images with fields of one of each image's captions, drawn uniformly.

    Attributes:
        splits: of the captions that are drawn.
        encode: makes the fields of captions.
    """

    stream: AugmentedStream
    splits: tuple[str, ...]
    encode: Encode

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """Those of `stream`, and the fields of `encode`."""
        rows = self.stream.rows(part, position, mine, random)
        chances = torch.rand(part.size, generator=random, dtype=torch.float64)[mine]
        return {**rows, **self.encode(self._texts(rows["row"], chances))}

    def _texts(self, rows: Tensor, chances: Tensor) -> list[str]:
        texts = []
        for each, chance in zip(self.stream.images.captions(rows), chances.tolist(), strict=True):
            own = [text for split in self.splits for text in getattr(each, split)]
            texts.append(own[int(chance * len(own))])
        return texts


def check_captions(images: ImageReader, splits: Sequence[str], path: object) -> list[str]:
    """All captions of the splits; ValueError if an image has none."""
    texts: list[str] = []
    for each in images.captions(torch.arange(len(images))):
        own = [text for split in splits for text in getattr(each, split)]
        if not own:
            raise ValueError(f"{path}: images have no captions: give dataset.captions")
        texts += own
    return texts
