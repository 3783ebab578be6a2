"""A teacher of numbers, a mixture, and a student mean + scale z: expectations are sums over nodes of a product rule.

Gradients by (mean, scale) at (MEAN, SCALE) and level SIGMA, of which tests hold five digits, were found by two other
quadratures, which agree to 1e-6.
"""

import numpy as np
import torch
from torch import Tensor, nn

from dmd.models.denoiser import GaussianMixtureDenoiser

MEAN, SCALE, SIGMA = 0.2, 0.45, 0.7  # of the student x = MEAN + SCALE z, and the noise level


def mixture(means: list[float], stds: list[float], weights: list[float]) -> GaussianMixtureDenoiser:
    """An exact denoiser of numbers."""
    centres = torch.tensor(means, dtype=torch.float64)[:, None, None, None]
    return GaussianMixtureDenoiser(centres, torch.tensor(stds), torch.tensor(weights)).requires_grad_(False)


TEACHER = mixture([-1.0, 0.8], [0.3, 0.5], [0.4, 0.6])
# Nodes and weights of a product rule over the student's noise z and the noise n of the level, as batches of numbers.
_nodes, _weights = np.polynomial.hermite_e.hermegauss(80)
STUDENT_NOISE, NOISE = (torch.from_numpy(part.ravel())[:, None, None, None] for part in np.meshgrid(_nodes, _nodes))
PRODUCT = torch.from_numpy(np.outer(_weights, _weights).ravel() / _weights.sum() ** 2)


def world(theta: Tensor, fake: nn.Module, sigma: float = SIGMA) -> tuple[Tensor, Tensor, Tensor]:
    """x, T and K at the nodes, for theta = (mean, scale) and a noise level."""
    image = theta[0] + theta[1] * STUDENT_NOISE
    noised, level, label = (
        image + sigma * NOISE,
        torch.full((len(NOISE),), sigma).double(),
        torch.full((len(NOISE),), -1),
    )
    return image, TEACHER(noised, level, label), fake(noised, level, label)


def density_ratio(noised: Tensor, sigma: float = SIGMA) -> Tensor:
    """Density of the teacher's numbers over that of the student's at MEAN and SCALE, both with noise of a level."""

    def density(mean: float, std: float) -> Tensor:
        variance = std**2 + sigma**2
        return (-((noised - mean) ** 2) / (2 * variance)).exp() / variance**0.5

    return (0.4 * density(-1.0, 0.3) + 0.6 * density(0.8, 0.5)) / density(MEAN, SCALE)


def parameters() -> Tensor:
    """MEAN and SCALE."""
    return torch.tensor([MEAN, SCALE], dtype=torch.float64, requires_grad=True)


def exact(theta: tuple[float, float] = (MEAN, SCALE)) -> nn.Module:
    """The fake denoiser that knows the student."""
    return mixture([theta[0]], [theta[1]], [1.0])


class Affine(nn.Module):
    """A student mean + scale z."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(parameters().detach())

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return self.theta[0] + self.theta[1] * image / sigma[:, None, None, None]
