"""Kernel distance: unbiased squared maximum mean discrepancy with a cubic kernel (KID)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 4096
NUM_SUBSETS = 100


def kernel_distance(features: Tensor, other: Tensor) -> float:
    """Unbiased squared MMD under k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 4 and Eq. 4).

    Args:
        features, other: (N, d) and (M, d), any float type; sums are float64.

    Returns:
        The estimate. Its mean is 0 for equal distributions, so it can be negative.

    Raises:
        ValueError: a set has fewer than two features, or d differs.
    """
    num, num_other = len(features), len(other)
    if min(num, num_other) < 2 or features.shape[1] != other.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(other.shape)}"
        raise ValueError(f"features of shapes {shapes} cannot be compared")
    within = (_kernel_sum(features, features) - _kernel_trace(features)) / (num * (num - 1))
    within_other = (_kernel_sum(other, other) - _kernel_trace(other)) / (num_other * (num_other - 1))
    return within + within_other - 2 * _kernel_sum(features, other) / (num * num_other)


def subset_kernel_distances(features: Tensor, other: Tensor, *, size: int, seed: int) -> Tensor:
    """`kernel_distance` between random subsets of `size` features of both sets, 100 times; float64 (100,).

    Raises:
        ValueError: a set is smaller than a subset.
    """
    if size > min(len(features), len(other)):
        raise ValueError(f"subsets of {size} are larger than the sets of {len(features)} and {len(other)}")
    generator = torch.Generator().manual_seed(seed)

    def subset(values: Tensor) -> Tensor:
        return values[torch.randperm(len(values), generator=generator)[:size]]

    distances = [kernel_distance(subset(features), subset(other)) for _ in range(NUM_SUBSETS)]
    return torch.tensor(distances, dtype=torch.float64)


def _kernel_sum(features: Tensor, other: Tensor) -> float:
    """Sum of the kernel over all pairs, block by block."""
    total = 0.0
    for rows in features.split(ROWS):
        rows = rows.double() / rows.shape[1]
        for columns in other.split(COLUMNS):
            total += float((rows @ columns.double().T + 1).pow(3).sum())
    return total


def _kernel_trace(features: Tensor) -> float:
    """Sum of the kernel of each feature with itself."""
    size = features.shape[1]
    norms = torch.cat([rows.double().square().sum(1) for rows in features.split(ROWS)])
    return float((norms / size + 1).pow(3).sum())
