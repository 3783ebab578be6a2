"""The denoising loss of EDM, for teachers and fake denoisers alike."""

import torch


def denoising_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """1/sigma^2 + 1/sigma_data^2 (Karras et al. 2022, Table 1): equal effective weight at every noise level."""
    return sigma.square().reciprocal() + 1 / sigma_data**2


def denoising_loss(
    denoised: torch.Tensor, image: torch.Tensor, sigma: torch.Tensor, *, sigma_data: float
) -> torch.Tensor:
    """Weighted squared error of x0 estimates, mean over all elements.

    Args:
        denoised: D(image + sigma * noise; sigma), shape (B, C, H, W).
        image: clean images, same shape.
        sigma: (B,).
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: the shapes differ.
    """
    if denoised.shape != image.shape:
        raise ValueError(f"denoised has shape {tuple(denoised.shape)}, image {tuple(image.shape)}")
    error = (denoised - image).square().flatten(1).mean(1)
    return (denoising_weight(sigma, sigma_data) * error).mean()
