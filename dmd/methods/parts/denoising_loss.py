"""The weighted squared error of x0 estimates, which several methods minimise."""

import torch


def denoising_loss(denoised: torch.Tensor, image: torch.Tensor, *, weight: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of x0 estimates, mean over all elements.

    Args:
        denoised: D(image + sigma * noise; sigma), shape (B, C, H, W).
        image: clean images, same shape.
        weight: of each sample, (B,), such as `Denoiser.loss_weight` of its noise level.

    Raises:
        ValueError: the shapes differ.
    """
    if denoised.shape != image.shape:
        raise ValueError(f"denoised has shape {tuple(denoised.shape)}, image {tuple(image.shape)}")
    error = (denoised - image).square().flatten(1).mean(1)
    return (weight * error).mean()
