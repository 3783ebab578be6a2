"""Random changes of training images: place, size, angle, mirror, colour."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dmd.config.pipeline_sections import Augmentation

NUM_VALUES = 9  # random values of an image


def draw(num: int, random: torch.Generator) -> Tensor:
    """The random values of `num` images, uniform in [0, 1), float64 (num, NUM_VALUES)."""
    return torch.rand((num, NUM_VALUES), generator=random, dtype=torch.float64)


def changed(image: Tensor, section: Augmentation, values: Tensor) -> Tensor:
    """Images as a section changes them, shaped like them; an image that is not to be changed stays as it is.

    Args:
        image: float32 (B, C, H, W) in [-1, 1].
        section: largest changes.
        values: of `draw`, (B, NUM_VALUES).
    """
    if section == Augmentation():
        return image
    chosen = values[:, 0] < section.share
    signed = 2 * values[:, 1:] - 1  # in [-1, 1)
    angle = math.radians(section.rotation) * signed[:, 0]
    size = 1 + section.scale * signed[:, 1]
    mirror = torch.where(signed[:, 2] < 0, -1.0, 1.0) if section.flip else torch.ones(len(image), dtype=torch.float64)
    move = 2 * section.shift * signed[:, 3:5]  # grid_sample's image is 2 wide
    rows = [
        torch.stack([mirror * angle.cos() / size, -angle.sin() / size, move[:, 0]], 1),
        torch.stack([mirror * angle.sin() / size, angle.cos() / size, move[:, 1]], 1),
    ]
    theta = torch.stack(rows, 1).to(image.dtype)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    moved = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    if image.shape[1] <= 3:
        factor = 1 + section.colour * signed[:, 5 : 5 + image.shape[1]].to(image.dtype)
        moved = ((moved + 1) * factor[:, :, None, None] - 1).clamp(-1, 1)
    return torch.where(chosen[:, None, None, None], moved, image)
