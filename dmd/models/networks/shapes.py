"""Checks of the inputs of networks."""

from typing import Any

import torch
from torch import Tensor


def check_image(network: Any, image: Tensor) -> None:
    """ValueError unless image is (B, channels, resolution, resolution) of `network`."""
    expected = (network.channels, network.resolution, network.resolution)
    if image.shape[1:] != expected:
        raise ValueError(f"image: shape {tuple(image.shape)} is not (B, {', '.join(map(str, expected))})")


def check_states(network: Any, label: Tensor) -> None:
    """ValueError unless label is text states, float (B, L, text_width of `network`)."""
    if label.ndim != 3 or label.shape[2] != network.text_width or not torch.is_floating_point(label):
        raise ValueError(
            f"label: {label.dtype} of shape {tuple(label.shape)} is not text states (B, L, {network.text_width})"
        )
