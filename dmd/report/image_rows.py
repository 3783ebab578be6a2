"""Images of several experiments from the same noise: a row of images for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmd.data import manifest
from dmd.report import plots
from dmd.report.table_text import rounded
from dmd.sampling.drawn_images import SampleImages

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
    expected = None
    for panel, (label, experiment), path in zip(axes[:, 0], rows, manifests, strict=True):
        images, starts = _first(path)
        expected = expected or starts
        if starts != expected:
            raise ValueError(f"{path}: its first samples have other seeds or labels than those of {manifests[0]}")
        plots.show_images(panel, images, columns=len(images))
        title = f"{label}   {rounded(scores[experiment]['value'])}" if experiment in scores else label
        panel.text(-0.01, 0.5, plots.plain(title), transform=panel.transAxes, ha="right", va="center")
    return figure


def _first(path: Path) -> tuple[Tensor, list[tuple[int, int]]]:
    """The first images of a manifest (N, C, H, W), and the seed and label of each."""
    found = manifest.read(path)
    if found.metadata["facts"].get("codec"):
        raise ValueError(f"{path} holds latents: a chart shows images only")
    images, labels = next(iter(SampleImages(found, batch_size=SHOWN, autoencoder=None, device=torch.device("cpu"))))
    if images.shape[1] not in (1, 3) or images.shape[-1] == 1:
        raise ValueError(f"{path} holds no images of 1 or 3 channels")
    return images, list(zip(found.numbers("seed")[: len(labels)].tolist(), labels.tolist(), strict=True))
