"""Euclidean distances between large sets of features, in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS, COLUMNS = 256, 4096


def distance_rows(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """Yields distances float64 (at most 256, len(columns)) of consecutive blocks of `rows` to all `columns`.

    Args:
        rows, columns: features of any float type, (N, d) and (M, d); one block at a time is converted to float64.
    """
    for block in rows.split(ROWS):
        block = block.double()
        yield torch.cat([torch.cdist(block, part.double()) for part in columns.split(COLUMNS)], dim=1)


def nearest_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Distance of each row to the nearest column, float64 (N,)."""
    return torch.cat([block.amin(dim=1) for block in distance_rows(rows, columns)])


def neighbour_radii(features: Tensor, *, neighbours: int) -> Tensor:
    """Distance of each feature to its k-th nearest neighbour, float64 (N,).

    Raises:
        ValueError: `neighbours` is not between 1 and the number of features - 1.
    """
    if not 0 < neighbours < len(features):
        raise ValueError(f"neighbours is {neighbours}, but there are {len(features)} features")
    # the nearest feature of a row is itself, hence the + 1
    blocks = distance_rows(features, features)
    return torch.cat([block.kthvalue(neighbours + 1, dim=1).values for block in blocks])
