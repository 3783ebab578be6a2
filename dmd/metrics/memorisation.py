"""A three-sample test for copies of training images (Meehan, Chaudhuri & Dasgupta 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmd.metrics.neighbours import nearest_distances

QUANTILE = 0.05


def memorisation(generated: Tensor, training: Tensor, held_out: Tensor) -> dict[str, float]:
    """Compares the distances of generated and held-out samples to the training set.

    The test is the Mann-Whitney statistic of the distances to the nearest training feature (C_T of Meehan et al. 2020,
    section 4, with a single cell). Held-out images show how near to the training set images are that are not copies.

    Args:
        generated, training, held_out: features (N, d), (T, d), (M, d).

    Returns:
        auc: probability that a generated sample is farther from the training set than a held-out one.
        z: distance of auc from 0.5 in standard deviations; far below 0: copies; far above: samples unlike the data.
        nearer: fraction of generated samples that are nearer to the training set than the 5 % quantile (QUANTILE) of
            held-out ones; about 5 % without copies.
        distance, held_out_distance: median distances to the nearest training feature.
    """
    distances = nearest_distances(generated, training)
    baseline = nearest_distances(held_out, training)
    auc, z = mann_whitney(distances, baseline)
    threshold = torch.quantile(baseline, QUANTILE)
    return {
        "auc": auc,
        "z": z,
        "nearer": float((distances < threshold).double().mean()),
        "distance": float(distances.median()),
        "held_out_distance": float(baseline.median()),
    }


def mann_whitney(values: Tensor, others: Tensor) -> tuple[float, float]:
    """P(value > other) + P(equal) / 2, and its z-score under equal distributions (normal limit).

    Raises:
        ValueError: either set is empty.
    """
    num, num_others = len(values), len(others)
    if not num or not num_others:
        raise ValueError(f"sets of {num} and {num_others} values cannot be compared")
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    auc = float((below + not_above).double().sum()) / (2 * num * num_others)
    spread = math.sqrt((num + num_others + 1) / (12 * num * num_others))
    return auc, (auc - 0.5) / spread
