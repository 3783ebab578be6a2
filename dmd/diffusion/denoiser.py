"""Denoisers D(image; sigma, label) -> x0: a preconditioned network, and an exact one for Gaussian mixtures."""

import torch
from torch import nn


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, 1, 1), to multiply images with."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module):
    """A network under EDM preconditioning (Karras et al. 2022, Table 1).

    D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), with coefficients that keep input and target of F
    at unit variance for data of standard deviation sigma_data.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """image (B, C, H, W) = x0 + sigma * noise; sigma (B,) > 0; label int64 (B,). Returns x0 (B, C, H, W)."""
        variance = sigma.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_in = variance.rsqrt()
        c_out = sigma * self.sigma_data * c_in
        out = self.network(image * per_sample(c_in, image), sigma.log() / 4, label)
        return torch.addcmul(image * per_sample(c_skip, image), out, per_sample(c_out, image))


class GaussianMixtureDenoiser(nn.Module):
    """The exact denoiser of a mixture of isotropic Gaussians, in the precision of its input.

    E[x0 | x] = sum_k r_k (s_k^2 x + sigma^2 mu_k) / (s_k^2 + sigma^2), responsibilities
    r_k ~ w_k N(x; mu_k, s_k^2 + sigma^2).
    """

    means: torch.Tensor
    stds: torch.Tensor
    weights: torch.Tensor

    def __init__(self, means: torch.Tensor, stds: torch.Tensor, weights: torch.Tensor) -> None:
        """means (K, C, H, W), stds (K,), weights (K,) summing to 1. ValueError if the counts differ."""
        super().__init__()
        if not len(means) == len(stds) == len(weights):
            raise ValueError(f"{len(means)} means, {len(stds)} stds and {len(weights)} weights")
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.double())
        self.register_buffer("weights", weights.double())

    def forward(self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Same as `Denoiser.forward`; the label is ignored."""
        flat, means = image.double().flatten(1), self.means.flatten(1)
        noise = sigma.double().square()[:, None]  # (B, 1)
        spread = self.stds.square() + noise  # (B, K)
        distance = (flat[:, None] - means).square().sum(-1)
        logits = self.weights.log() - 0.5 * (distance / spread + flat.shape[1] * spread.log())
        share = logits.softmax(-1)  # responsibilities (B, K)
        x0 = (share * self.stds.square() / spread).sum(-1, keepdim=True) * flat + (share * noise / spread) @ means
        return x0.to(image.dtype).reshape(image.shape)
