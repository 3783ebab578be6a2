"""Frechet distance between Gaussians that are fitted to features, and its floor for finite samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmd.metrics.moments import Moments


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson & Landau 1982), as in FID.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2, where the last trace is the sum of singular values of
    S1^1/2 S2^1/2. This needs no root of the product S1 S2, whose small eigenvalues would be lost to rounding, and no
    regularisation of singular covariances (fewer samples than features).

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
    offset = (mean.double() - other_mean.double()).square().sum()
    cross = _cross(square_root(covariance), square_root(other_covariance))
    return max(float(offset + covariance.trace() + other_covariance.trace() - 2 * cross), 0.0)


def moments_distance(moments: Moments, other: Moments) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features."""
    return frechet_distance(moments.mean, moments.covariance, other.mean, other.covariance)


def sample_distance(features: Tensor, other: Tensor) -> float:
    """`moments_distance` of two sets of features (N, d) and (M, d), for few samples of many features.

    It needs no (d, d) matrix: with rows X, Y that are centred and divided by the square root of N - 1 and M - 1, the
    cross term is the sum of the singular values of X Y^T, of shape (N, M).

    Raises:
        ValueError: d differs, or a set has fewer than two features.
    """
    if features.shape[1] != other.shape[1] or min(len(features), len(other)) < 2:
        raise ValueError(f"features of shapes {tuple(features.shape)} and {tuple(other.shape)} cannot be compared")
    (mean, first), (other_mean, second) = (_centred(each.double()) for each in (features, other))
    cross = _cross(first.T, second.T)
    trace = first.square().sum() + second.square().sum()
    return max(float((mean - other_mean).square().sum() + trace - 2 * cross), 0.0)


def bootstrap_floor(features: Tensor, *, num_samples: int, num_draws: int, seed: int) -> list[float]:
    """Distances that a perfect generator would have, from sampling noise alone, estimated by bootstrap.

    The distance between two finite samples of one distribution is biased upwards, by about c (1/N + 1/M)
    (Chong & Forsyth 2020). So each split draws N = `num_samples` and, independently, M = len(features) of the real
    features with replacement and computes their distance; N and M are those of the reported value. Samples with
    balanced labels vary less than real ones, so their distance may be below the floor.

    Args:
        features: features of real data, (M, d).
        num_samples: N, the number of generated samples of the reported distance.
        num_draws: number of independent repetitions.
        seed: of the draws.

    Returns:
        One distance per split, squared feature units.
    """
    generator = torch.Generator().manual_seed(seed)
    num = len(features)

    def resample(size: int) -> Moments:
        return Moments.of(features[torch.randint(num, (size,), generator=generator)])

    return [moments_distance(resample(num_samples), resample(num)) for _ in range(num_draws)]


def gaussian_floor(mean: Tensor, covariance: Tensor, *, num_samples: int, num_draws: int, seed: int) -> list[float]:
    """`floor` for published moments of the real data: distances of `num_samples` Gaussian draws to them.

    The moments of N draws from N(mean, covariance) are drawn from their exact distribution: the mean is normal, and
    independent of it the covariance is Wishart (Bartlett's decomposition). The features are taken as Gaussian and the
    published moments as exact, so the floor omits the noise of a finite reference.

    Returns:
        One distance per split, squared feature units.

    Raises:
        ValueError: fewer than two samples, whose covariance is undefined.
    """
    if num_samples < 2:
        raise ValueError(f"the covariance of {num_samples} samples is undefined")
    random = np.random.default_rng(seed)
    root = square_root(covariance)
    size, freedom = len(mean), num_samples - 1
    distances = []
    for _ in range(num_draws):
        drawn = mean + root @ torch.from_numpy(random.standard_normal(size)) / num_samples**0.5
        factor = torch.from_numpy(random.standard_normal((size, min(size, freedom)))).tril(-1)
        degrees = freedom - np.arange(factor.shape[1])
        factor.diagonal().copy_(torch.from_numpy(random.chisquare(degrees)).sqrt())
        factor = root @ factor / freedom**0.5
        total = (drawn - mean).square().sum() + factor.square().sum() + covariance.trace() - 2 * _cross(root, factor)
        distances.append(max(float(total), 0.0))
    return distances


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semidefinite matrix, float64 (d, d)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    smallest = values.abs().max() * len(values) * torch.finfo(values.dtype).eps  # within rounding error of zero
    return (vectors * torch.where(values > smallest, values, 0).sqrt()) @ vectors.T


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,), and the features without it over the square root of N - 1, (N, d)."""
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _cross(factor: Tensor, other: Tensor) -> Tensor:
    """tr (S1^1/2 S2 S1^1/2)^1/2 of covariances S = F F^T from any factors F, (d, m) and (d, n)."""
    return torch.linalg.svdvals(factor.T @ other).sum()
