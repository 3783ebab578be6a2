"""A grid of images, or a plot of points in the plane, as a PNG."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from dmd.models.autoencoder import Codec
from dmd.provenance import files

EDGE = 64  # pixels: smaller images are enlarged to about this
SIDE = 128  # pixels: larger decoded images are averaged down to this
PLANE = 4.0  # the plot shows -PLANE to PLANE


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
