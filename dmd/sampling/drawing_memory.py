"""Memory that drawing images needs, measured in forward passes on one and on two images."""

from __future__ import annotations

import torch
from torch import nn

from dmd.jobs import gpu_memory
from dmd.models.tensor_bytes import LinearBytes, carriers, peak_bytes, weight_bytes

TEXT_LENGTH = 77  # tokens of CLIP's text encoders


def announce_drawing(denoiser: nn.Module, shape: tuple[int, ...], batch_size: int, device: torch.device) -> None:
    """Logs the memory plan of a stage that draws images; the denoiser must be on its device and not compiled yet."""
    weights = weight_bytes(denoiser)
    activations = pass_bytes(denoiser, shape).of(batch_size)
    parts = {"weights": weights, f"activations of {batch_size} images": activations}
    gpu_memory.announce(parts, device, allocated=weights, advice="lower batch_size, or set compute.dtype bfloat16")


def pass_bytes(denoiser: nn.Module, shape: tuple[int, ...]) -> LinearBytes:
    """Peak bytes of a forward pass without gradient, by number of images; 0 for a denoiser without network."""
    if next(denoiser.parameters(), None) is None:
        return LinearBytes(0, 0)
    one, two = (_pass_bytes(denoiser, shape, num) for num in (1, 2))
    return LinearBytes(two - one, max(2 * one - two, 0))


@torch.no_grad()
def _pass_bytes(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> int:
    inputs = _inputs(denoiser, shape, num)
    return peak_bytes(lambda: denoiser(*inputs))


def _inputs(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = next(denoiser.parameters())
    network = getattr(denoiser, "network", None)
    classes = getattr(network, "num_classes", 0)  # some networks refuse -1 (no class)
    label = torch.full((num,), 0 if classes else -1, device=like.device)
    if (empty := getattr(network, "empty", None)) is not None:  # with guidance
        label = torch.zeros((num, *empty.shape), dtype=empty.dtype, device=like.device)
    elif width := getattr(next(iter(carriers(denoiser)), network), "text_width", 0):
        label = like.new_zeros((num, TEXT_LENGTH, width))
    return like.new_zeros((num, *shape)), like.new_ones(num), label
