"""Grids of the images that a student draws from fixed noise during its training, and their PNG files."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.models.autoencoder import Codec
from dmd.provenance import files
from dmd.sampling.noise import seeded_noise
from dmd.train.trainer import Trainer

NUM = 64  # images in a grid
EDGE = 64  # pixels: smaller images are enlarged to about this
SIDE = 128  # pixels: larger decoded images are averaged down to this
PLANE = 4.0  # the plot shows -PLANE to PLANE


class Grid:
    """Draws images from fixed noise, to show the progress of a student.

    Compiled networks get padded batches of their training size, since they would be compiled again for another shape.
    """

    def __init__(
        self,
        trainer: Trainer,
        texts: Callable[[int], torch.Tensor] | None = None,
        small: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Prepares noise and conditions.

        Args:
            texts: num -> text states (num, L, E), if the condition is text.
            small: makes small images of latents, where no distance of the training has a decoder.
        """
        facts = trainer.method.facts
        compiled = trainer.training.compute.compile
        self._trainer = trainer
        self._size = trainer.pass_size() if compiled else trainer.split.micro_batch_size
        self._noise, balanced = seeded_noise(range(NUM), facts.shape, num_classes=facts.num_classes, labels="balanced")
        self._label = balanced if texts is None else texts(NUM)
        codecs = [
            distance.codec for distance in trainer.method.distances.values() if isinstance(distance, DecodedDistance)
        ]
        self._small = partial(decode_small, codec=codecs[0]) if codecs else small

    @torch.no_grad()
    def draw(self) -> torch.Tensor:
        """Images float32 (64, C, H, W); latents are decoded if the training has a decoder."""
        size = self._size or NUM
        indices = torch.arange(-(-NUM // size) * size) % NUM
        images = [self._draw_batch(self._noise[batch], self._label[batch]) for batch in indices.split(size)]
        image = torch.cat(images)[:NUM]
        return image if self._small is None else self._small(image)

    def _draw_batch(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        networks, calls = self._trainer.networks, self._trainer.method.sampling()
        assert calls is not None, "a denoiser has no grid"
        networks.use_dropout(())
        random = torch.Generator().manual_seed(NUM)
        noise, label = noise.to(networks.device), label.to(networks.device)
        return calls.draw(
            networks["student"], noise, label, lambda number: torch.randn(noise.shape, generator=random).to(noise)
        )


def save_grid(path: str | Path, images: torch.Tensor) -> None:
    """Writes a PNG: images (B, C, H, W) in [-1, 1] row by row, or points (B, 2, 1, 1) as dots in a plane.

    Images that would not fill the last row are left out; the first three channels of latents are shown as colours.
    """
    points = images.shape[1:] == (2, 1, 1)
    sheet = _plane(images.flatten(1).numpy()) if points else _sheet(images)
    with files.atomic(Path(path)) as temporary:
        Image.fromarray(sheet).save(temporary, format="png")


@torch.no_grad()
def decode_small(latents: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Images (B, 3, h, w) of latents (B, C, H, W), decoded one by one and averaged down to at most `SIDE` pixels."""
    images = [codec.decode(latent) for latent in latents.split(1)]
    return torch.cat([adaptive_avg_pool2d(image, min(SIDE, image.shape[-1])) for image in images])


def _sheet(images: torch.Tensor) -> np.ndarray:
    images = images if images.shape[1] == 1 else images[:, :3]
    scale = max(1, EDGE // images.shape[-1])
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    levels = levels.repeat_interleave(scale, -1).repeat_interleave(scale, -2).permute(0, 2, 3, 1)
    columns = math.isqrt(len(levels))
    rows = len(levels) // columns
    height, width, channels = levels.shape[1:]
    sheet = levels[: rows * columns].reshape(rows, columns, height, width, channels).transpose(1, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).numpy()
    return pixels[:, :, 0] if channels == 1 else pixels


def _plane(points: np.ndarray) -> np.ndarray:
    size = 256
    pixels = ((points / PLANE + 1) * size / 2).round().astype(int).clip(1, size - 2)
    sheet = np.full((size, size), 255, np.uint8)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            sheet[size - 1 - pixels[:, 1] + dy, pixels[:, 0] + dx] = 40
    return sheet
