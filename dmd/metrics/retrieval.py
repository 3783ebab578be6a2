"""Retrieval: whether an image is nearer to its own caption than to those of others (R-precision, arXiv 1711.10485)."""

from __future__ import annotations

import torch
from torch import Tensor

TOP = (1, 5)  # ranks up to which a caption counts as found


def ranks(cosines: Tensor, right: Tensor) -> Tensor:
    """The rank of each image's best own caption among all captions, from 1; equal cosines count against it.

    Args:
        cosines: of images and captions, (B, P).
        right: bool (B, P), whether a caption is one of the image's; each image has one at least.

    Returns:
        int64 (B,): 1 plus the number of other captions that are as near as the best own one, or nearer.

    Raises:
        ValueError: an image has no caption.
    """
    if not bool(right.any(1).all()):
        raise ValueError(f"image {int(right.any(1).float().argmin())} of the batch has no caption")
    best = cosines.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((cosines >= best) & ~right).sum(1)


def found(rank: Tensor) -> dict[str, float]:
    """Fractions of images whose rank is at most 1, 5: keys top1, top5."""
    return {f"top{limit}": float((rank <= limit).double().mean()) for limit in TOP}
