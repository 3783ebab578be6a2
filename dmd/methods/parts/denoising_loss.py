"""The weighted squared error of x0 estimates, which several methods minimise."""

import torch
from torch import nn

from dmd.models.denoiser import Denoiser


def denoising_loss(denoised: torch.Tensor, image: torch.Tensor, *, weight: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of x0 estimates, mean over all elements; see `weighted_errors`."""
    return weighted_errors(denoised, image, weight=weight).mean()


def weighted_errors(denoised: torch.Tensor, image: torch.Tensor, *, weight: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of each x0 estimate, mean over its elements, (B,).

    Args:
        denoised: D(image + sigma * noise; sigma), shape (B, C, H, W).
        image: clean images, same shape.
        weight: of each sample, (B,), such as `Denoiser.loss_weight` of its noise level.

    Raises:
        ValueError: the shapes differ.
    """
    if denoised.shape != image.shape:
        raise ValueError(f"denoised has shape {tuple(denoised.shape)}, image {tuple(image.shape)}")
    return weight * (denoised - image).square().flatten(1).mean(1)


def x0_weight(weighting: str, sigma: torch.Tensor, student: nn.Module) -> torch.Tensor:
    """Weight (B,) of the squared error of x0 at levels sigma (B,) (Salimans and Ho 2022, Section 4).

    "truncated-snr": max(1/sigma^2, 1); "snr+1": 1 + 1/sigma^2; "network": that of the student's preconditioning.
    """
    if weighting == "network":
        assert isinstance(student, Denoiser)
        return student.loss_weight(sigma)
    ratio = sigma.square().reciprocal()  # signal to noise
    return ratio.clamp(min=1.0) if weighting == "truncated-snr" else 1.0 + ratio
