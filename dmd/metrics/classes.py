"""Predicted classes of samples: counts, and their distance to real and requested classes."""

from __future__ import annotations

import torch
from torch import Tensor


def class_counts(predicted: Tensor, *, num_classes: int) -> Tensor:
    """Number of samples per class, int64 (num_classes,), from predicted classes (N,).

    Raises:
        ValueError: a predicted class is outside 0 .. num_classes - 1.
    """
    if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) < num_classes:
        low, high = int(predicted.min()), int(predicted.max())
        raise ValueError(f"predicted classes are {low} to {high}, but there are {num_classes} classes")
    return torch.bincount(predicted, minlength=num_classes)


def total_variation(counts: Tensor, other: Tensor) -> float:
    """Total variation between two class histograms, each scaled to sum 1: 0 = equal, 1 = no common class.

    Raises:
        ValueError: different numbers of classes, or a histogram is empty.
    """
    if counts.shape != other.shape or counts.sum() <= 0 or other.sum() <= 0:
        raise ValueError(f"histograms {counts.tolist()} and {other.tolist()} cannot be compared")
    return float((counts.double() / counts.sum() - other.double() / other.sum()).abs().sum() / 2)


def accuracy(predicted: Tensor, label: Tensor) -> float | None:
    """Fraction of samples whose predicted class is the requested one; None if no sample has a label (all are -1)."""
    labelled = label >= 0
    if not labelled.any():
        return None
    return float((predicted == label)[labelled].double().mean())


def class_scores(predicted: Tensor, label: Tensor, real_counts: Tensor) -> dict[str, float | None]:
    """Compares the predicted classes of one set of samples with real and requested classes.

    Args:
        predicted, label: predicted and requested classes, int64 (N,); label -1 = none requested.
        real_counts: counts of predicted classes of real images, (num_classes,).

    Returns:
        real, uniform, requested: total variation to the classes of real images, to equal counts, and to the requested
        labels; accuracy: fraction of samples of the requested class. The last two are None without labels.
    """
    num_classes = len(real_counts)
    counts = class_counts(predicted, num_classes=num_classes)
    labelled = label[label >= 0]
    requested = class_counts(labelled, num_classes=num_classes) if len(labelled) else None
    return {
        "real": total_variation(counts, real_counts),
        "uniform": total_variation(counts, torch.ones(num_classes)),
        "requested": None if requested is None else total_variation(counts, requested),
        "accuracy": accuracy(predicted, label),
    }
