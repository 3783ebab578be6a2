"""Resizes images by Pillow's filters, as published protocols do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FILTERS = ("lanczos", "bicubic", "box")
LEVELS = 256  # grey levels of images that can be resized


def resize(image: Tensor, *, size: int, filter: str) -> Tensor:
    """Resizes 8-bit images, with rounding to 8 bits, as image programs do.

    Args:
        image: uint8 (B, 1 or 3, H, W).
        size: of both sides, in pixels; images of this size are not changed.
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
        raise ValueError(f"resize.size: images of {height} x {width} pixels are not square")
    if height == size:
        return image.cpu()
    pixels = image.permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]) for array in pixels]
    small = [picture.resize((size, size), Image.Resampling[filter.upper()]) for picture in pictures]
    result = torch.from_numpy(np.stack([np.asarray(picture) for picture in small]))
    return result.permute(0, 3, 1, 2) if result.ndim == 4 else result[:, None]


def bicubic(image: Tensor, *, size: int) -> Tensor:
    """Resizes 8-bit images by Pillow's bicubic filter in floating point, channel by channel, without rounding.

    For smaller sizes the filter is widened, which avoids aliasing (Parmar et al. 2022). As in the clean-fid package,
    what overshoots at edges is clipped.

    Args:
        image: uint8 (B, C, H, W).
        size: of both sides, in pixels.

    Returns:
        float32 (B, C, size, size), 0 to 255, on the CPU.
    """
    planes = image.flatten(0, 1).cpu().numpy().astype(np.float32)
    small = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in small]).clip(0, 255)).unflatten(0, image.shape[:2])


def check(resize: Mapping[str, Any] | None, levels: int | None) -> None:
    """ValueError unless images of `levels` grey levels can be resized by the section `protocol.resize`."""
    if resize is None:
        return
    if levels != LEVELS:
        raise ValueError(f"protocol.resize works on 8-bit images: protocol.quantise must be {LEVELS}, not {levels}")
    if resize.get("filter") not in FILTERS:
        raise ValueError(f"protocol.resize.filter {resize.get('filter')!r} is none of {', '.join(FILTERS)}")
