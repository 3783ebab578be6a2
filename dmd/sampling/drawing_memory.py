"""Memory of passes without gradient, in bytes, counted on one and two images."""

from __future__ import annotations

import torch
from torch import nn

from dmd.cluster import gpu_memory
from dmd.models.counting import Line, carriers, peak_bytes, weight_bytes

TEXT_LENGTH = 77  # tokens of CLIP's text encoders


def announce_drawing(denoiser: nn.Module, shape: tuple[int, ...], batch_size: int, device: torch.device) -> None:
    """The plan of stages that draw images, `batch_size` at once; the denoiser is on its device, not compiled yet."""
    weights = weight_bytes(denoiser)
    parts = drawing_parts(weights=weights, found=working(denoiser, shape), batch_size=batch_size)
    gpu_memory.announce(parts, device, allocated=weights, advice="lower batch_size, or set compute.dtype bfloat16")


def working(denoiser: nn.Module, shape: tuple[int, ...]) -> Line:
    """What a pass without gradient holds at most; a denoiser without network holds next to nothing."""
    if next(denoiser.parameters(), None) is None:
        return Line(0, 0)
    one, two = (_working(denoiser, shape, num) for num in (1, 2))
    return Line(two - one, max(2 * one - two, 0))


def drawing_parts(*, weights: int, found: Line, batch_size: int) -> dict[str, int]:
    """Bytes by purpose while images are drawn."""
    return {"weights": weights, f"activations of {batch_size} images": found.of(batch_size)}


@torch.no_grad()
def _working(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> int:
    given = _input(denoiser, shape, num)
    return peak_bytes(lambda: denoiser(*given))


def _input(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = next(denoiser.parameters())
    network = getattr(denoiser, "network", None)
    classes = getattr(network, "num_classes", 0)  # not every network takes -1, none
    label = torch.full((num,), 0 if classes else -1, device=like.device)
    if (empty := getattr(network, "empty", None)) is not None:  # under guidance
        label = torch.zeros((num, *empty.shape), dtype=empty.dtype, device=like.device)
    elif width := getattr(next(iter(carriers(denoiser)), network), "text_width", 0):
        label = like.new_zeros((num, TEXT_LENGTH, width))
    return like.new_zeros((num, *shape)), like.new_ones(num), label
