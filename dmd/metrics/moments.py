"""First two moments of features as sums, so that the moments of shards can be added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096  # rows converted to float64 at a time


@dataclass(frozen=True)
class Moments:
    """Sums over features x of shape (d,), float64.

    Attributes:
        count: number of features.
        sum: sum of x, shape (d,).
        outer: sum of x x', shape (d, d).
    """

    count: int
    sum: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of features (N, d) of any float type.

        Raises:
            ValueError: the features do not have two axes, or hold a value that is not finite.
        """
        if features.ndim != 2:
            raise ValueError(f"features have shape {tuple(features.shape)}, not (N, d)")
        size = features.shape[1]
        total = torch.zeros(size, dtype=torch.float64)
        outer = torch.zeros(size, size, dtype=torch.float64)
        for rows in features.split(ROWS):
            rows = rows.to("cpu", torch.float64)
            total += rows.sum(0)
            outer.addmm_(rows.T, rows)
        if not torch.isfinite(total).all():
            raise ValueError("features hold values that are not finite")
        return cls(len(features), total, outer)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of features together."""
        if self.sum.shape != other.sum.shape:
            raise ValueError(f"moments of {len(self.sum)} and of {len(other.sum)} features cannot be added")
        return Moments(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """Mean, float64 (d,)."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance with the divisor count - 1, float64 (d, d), exactly symmetric.

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} features is undefined")
        mean = self.mean
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return (covariance + covariance.T) / 2
