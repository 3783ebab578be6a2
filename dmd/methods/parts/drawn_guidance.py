"""Guidance that is drawn for each image, for students that learn a range of it."""

from __future__ import annotations

import torch
from torch import Tensor

from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.guidance import Guided, both_conditions


def draw_guidance(num: int, bounds: tuple[float, float], random: torch.Generator) -> Tensor:
    """Guidance w, uniform from the lowest to the highest: float32 (num,)."""
    lowest, highest = bounds
    return lowest + (highest - lowest) * torch.rand(num, generator=random)


def guided_x0(teacher: Denoiser, image: Tensor, sigma: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
    """T_u + w (T_c - T_u), by one call on a doubled batch; T_c of a teacher that is without guidance, as for w = 1.

    Args:
        teacher: of `with_guidance`; its own guidance is not used.
        image, sigma, label: as for `Denoiser.forward`.
        guidance: w of each image, (B,).
    """
    if not isinstance(getattr(teacher, "network", None), Guided):
        return teacher(image, sigma, label)  # type: ignore[no-any-return]
    unconditional, conditional = both_conditions(teacher, image, sigma, label)
    return unconditional + per_sample(guidance, image) * (conditional - unconditional)
