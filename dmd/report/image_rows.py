"""Images of several experiments from the same noise: a row of images for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmd.data import manifest, shards
from dmd.report import plots
from dmd.report.table_text import rounded

SHOWN = 20  # images of an experiment


def draw_image_rows(
    scores: Mapping[str, Any], manifests: Sequence[Path], series: Sequence[Mapping[str, Any]]
) -> Figure:
    """One row per point of the series: the first images of its first experiment, with its label and distance.

    Raises:
        ValueError: damaged samples, other numbers of rows and manifests, samples that are latents or points, or that
            start from other noise than those of the first row.
    """
    rows = [(line["label"], point[0]) for line in series for point in line["points"]]
    if len(manifests) != len(rows):
        raise ValueError(f"the chart has {len(rows)} rows of images, but {len(manifests)} manifests of samples")
    figure, axes = plots.new(len(rows), 1, size=(10.0, 0.52 * len(rows) + 0.6))
    starts: list[tuple[int, int]] = []
    for panel, (label, experiment), path in zip(axes[:, 0], rows, manifests, strict=True):
        images, own = _first(path)
        if starts and own != starts:
            raise ValueError(f"{path}: its first samples have other seeds or labels than those of {manifests[0]}")
        starts = own
        plots.show_images(panel, images, columns=len(images))
        panel.text(
            -0.01, 0.5, _title(label, scores.get(experiment)), transform=panel.transAxes, ha="right", va="center"
        )
    return figure


def _title(label: str, score: Mapping[str, Any] | None) -> str:
    """The label of a row, with the distance of its score."""
    return plots.plain(label) if score is None else plots.plain(f"{label}   {rounded(score['value'])}")


def _first(path: Path) -> tuple[Tensor, list[tuple[int, int]]]:
    """The first images of a manifest (N, C, H, W), and the seed and label of each."""
    found, images = manifest.read(path), list[np.ndarray]()
    for part in found.shards:
        with shards.Shard(part.path, size=part.size, sha256=part.sha256) as shard:
            images += [item["image"].astype(np.float32) for _, item in islice(shard.items(), SHOWN - len(images))]
    stacked = torch.from_numpy(np.stack(images))
    if found.metadata.get("facts", {}).get("codec") or stacked.shape[1] not in (1, 3) or stacked.shape[-1] == 1:
        raise ValueError(f"{path} holds no images of 1 or 3 channels")
    starts = zip(found.numbers("seed")[:SHOWN].tolist(), found.numbers("label")[:SHOWN].tolist(), strict=True)
    return stacked, list(starts)
