"""Frechet distance between Gaussians fitted to features, and its floor for finite samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dmd.metrics.moments import Moments


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson & Landau 1982), as in FID.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2, by two symmetric eigendecompositions: singular
    covariances (fewer samples than features) need no regularisation.

    Args:
        mean, other_mean: float64 (d,).
        covariance, other_covariance: symmetric positive semidefinite, float64 (d, d).

    Returns:
        The distance in squared feature units, at least 0.

    Raises:
        ValueError: the shapes differ.
    """
    if mean.shape != other_mean.shape or covariance.shape != other_covariance.shape:
        raise ValueError(f"moments of {len(mean)} and of {len(other_mean)} features cannot be compared")
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * _sqrt(values)) @ vectors.T
    product = root @ other_covariance.double() @ root
    cross = _sqrt(torch.linalg.eigvalsh((product + product.T) / 2)).sum()
    offset = (mean.double() - other_mean.double()).square().sum()
    return max(float(offset + covariance.trace() + other_covariance.trace() - 2 * cross), 0.0)


def moments_distance(moments: Moments, other: Moments) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features."""
    return frechet_distance(moments.mean, moments.covariance, other.mean, other.covariance)


def floor(features: Tensor, *, num_samples: int, num_splits: int, seed: int) -> list[float]:
    """Distances that a perfect generator would get from sampling noise alone, by bootstrap.

    The distance between two finite samples of one distribution is biased upwards, by about c (1/N + 1/M)
    (Chong & Forsyth 2020). So each split draws `num_samples` and, independently, M = len(features) of the real
    features with replacement and takes the distance between the two: the N and M of the reported value, whatever
    N is, without a factor that converts halves of the real data. Samples with evenly drawn labels vary less than
    real ones, so their distance may come out below the floor.

    Args:
        features: features of real data that no generator saw, (M, d).
        num_samples: N, the number of generated samples that the reported distance is measured with.
        num_splits: number of independent repetitions.
        seed: of the draws.

    Returns:
        One distance per split, squared feature units.
    """
    generator = torch.Generator().manual_seed(seed)
    num = len(features)

    def resampled(size: int) -> Moments:
        return Moments.of(features[torch.randint(num, (size,), generator=generator)])

    return [moments_distance(resampled(num_samples), resampled(num)) for _ in range(num_splits)]


def _sqrt(values: Tensor) -> Tensor:
    """Square roots of eigenvalues; those within rounding error of zero (or below it) count as zero."""
    smallest = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > smallest, values, 0).sqrt()
