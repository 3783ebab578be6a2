"""Precision, recall, density and coverage, which measure fidelity and diversity separately."""

from __future__ import annotations

import torch
from torch import Tensor

from dmd.metrics.neighbours import distance_rows, neighbour_radii


def prdc(generated: Tensor, real: Tensor, *, neighbours: int, real_radii: Tensor | None = None) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020, Eqs. 1-4).

    The ball around a feature reaches to its k-th nearest neighbour in the same set (k = `neighbours`). All four depend
    on the numbers of samples: compare values only for equal N and M.

    Args:
        generated, real: features (N, d) and (M, d).
        real_radii: `neighbour_radii` of `real`; giving them saves a third of the work or more.

    Returns:
        precision: fraction of generated samples inside a real ball; recall: fraction of real ones inside a generated
        ball; density: mean number of real balls around a generated sample, over k (it may exceed 1); coverage:
        fraction of real balls with a generated sample inside.

    Raises:
        ValueError: either set has no more than k features.
    """
    if real_radii is None:
        real_radii = neighbour_radii(real, neighbours=neighbours)
    generated_radii = neighbour_radii(generated, neighbours=neighbours)
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    num_precise, num_balls, start = 0, 0, 0
    for block in distance_rows(generated, real):
        inside = block < real_radii
        num_precise += int(inside.any(dim=1).sum())
        num_balls += int(inside.sum())
        covered |= inside.any(dim=0)
        recalled |= (block < generated_radii[start : start + len(block), None]).any(dim=0)
        start += len(block)
    return {
        "precision": num_precise / len(generated),
        "recall": int(recalled.sum()) / len(real),
        "density": num_balls / (neighbours * len(generated)),
        "coverage": int(covered.sum()) / len(real),
    }
