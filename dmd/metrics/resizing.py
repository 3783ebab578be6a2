"""Images in other sizes, by Pillow's filters: those are the ones that published protocols name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FILTERS = ("lanczos", "bicubic", "box")
LEVELS = 256  # of the images that are resized


def resized(image: Tensor, *, size: int, filter: str) -> Tensor:
    """8-bit images in another size, rounded to 8 bits again: what becomes of a picture that is saved smaller.

    Args:
        image: uint8 (B, 1 or 3, H, W).
        size: of both sides, in pixels; images that have it already stay as they are.
        filter: one of `FILTERS`.

    Returns:
        uint8 (B, C, size, size), on the CPU.

    Raises:
        ValueError: an unknown filter, or images that are not square.
    """
    if filter not in FILTERS:
        raise ValueError(f"resize.filter {filter!r} is none of {', '.join(FILTERS)}")
    height, width = image.shape[2:]
    if height != width:
        raise ValueError(f"resize.size: images of {height} x {width} pixels are not square, {size} x {size} is")
    if height == size:
        return image.cpu()
    pixels = image.permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(one if one.shape[2] == 3 else one[:, :, 0]) for one in pixels]
    small = [picture.resize((size, size), Image.Resampling[filter.upper()]) for picture in pictures]
    found = torch.from_numpy(np.stack([np.asarray(picture) for picture in small]))
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found[:, None]


def bicubic(image: Tensor, *, size: int) -> Tensor:
    """8-bit images in another size by Pillow's bicubic filter in floating point, each channel apart, not rounded.

    It averages over all pixels below the filter, so that what is made smaller has no aliasing (Parmar et al. 2022).

    Args:
        image: uint8 (B, C, H, W).
        size: of both sides, in pixels.

    Returns:
        float32 (B, C, size, size), about 0 to 255 (the filter overshoots at edges), on the CPU.
    """
    planes = image.flatten(0, 1).cpu().numpy().astype(np.float32)
    found = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in found])).unflatten(0, image.shape[:2])


def check(resize: Mapping[str, Any] | None, levels: int | None) -> None:
    """ValueError unless images of `levels` grey levels can be resized as section `protocol.resize` says."""
    if resize is None:
        return
    if levels != LEVELS:
        raise ValueError(f"protocol.resize works on 8-bit images: protocol.quantise is {levels}, not {LEVELS}")
    if resize.get("filter") not in FILTERS:
        raise ValueError(f"protocol.resize.filter {resize.get('filter')!r} is none of {', '.join(FILTERS)}")
