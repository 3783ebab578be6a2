"""Inception Score, which is high if a classifier is sure of each image and all images cover many classes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def inception_scores(logits: Iterable[Tensor], *, num_samples: int, num_splits: int, seed: int) -> list[float]:
    """exp of the mean KL divergence of p(class | image) from p(class), per split (Salimans et al. 2016).

    The splits are those of torch-fidelity: equal parts of the samples in the order of numpy's
    RandomState(seed).permutation. Logits are read block by block; only sums stay in memory.

    Args:
        logits: blocks (n, K), in the order of the samples, with `num_samples` rows in total.

    Returns:
        One score per split, from 1 to K.

    Raises:
        ValueError: fewer samples than splits, or blocks that do not have `num_samples` rows in total.
    """
    if not 0 < num_splits <= num_samples:
        raise ValueError(f"{num_samples} samples cannot be divided into {num_splits} splits")
    order = np.random.RandomState(seed).permutation(num_samples)
    ends = [(number + 1) * num_samples // num_splits for number in range(num_splits)]
    split = np.empty(num_samples, np.int64)
    split[order] = np.searchsorted(ends, np.arange(num_samples), side="right")
    member = torch.from_numpy(split)
    sums = torch.zeros(num_splits, 0, dtype=torch.float64)  # of probabilities, (splits, K)
    negentropy = torch.zeros(num_splits, dtype=torch.float64)
    start = 0
    for block in logits:
        logarithm = block.double().log_softmax(1)
        rows = member[start : start + len(block)]
        start += len(block)
        if len(rows) != len(block):
            break
        sums = sums if start > len(block) else sums.new_zeros(num_splits, block.shape[1])
        sums.index_add_(0, rows, logarithm.exp())
        negentropy.index_add_(0, rows, (logarithm.exp() * logarithm).sum(1))
    if start != num_samples:
        raise ValueError(f"the blocks hold logits of at least {start} samples, not of {num_samples}")
    counts = torch.bincount(member)
    marginal = sums / counts[:, None]
    return (negentropy / counts - torch.xlogy(marginal, marginal).sum(1)).exp().tolist()
