"""Figure 3 of Yin et al. 2023, redrawn: samples of two-dimensional students over contours of the real density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dmd.data import manifest, shards
from dmd.report import plots

MAX_POINTS = 2000  # in a panel


def draw_figure3(
    scores: Mapping[str, Any],
    manifests: Sequence[Path],
    series: Sequence[Mapping[str, Any]],
    dataset: Mapping[str, Any] | None,
) -> Figure:
    """One panel per point of the series: samples over contours of the real density, with the share of each mode."""
    panels = [(line["label"], point) for line in series for point in line["points"]]
    if dataset is None or dataset.get("kind") != "gaussian-mixture":
        raise ValueError(f"figure3 needs a dataset of kind gaussian-mixture, not {dataset}")
    if len(manifests) != len(panels):
        raise ValueError(f"figure3 has {len(panels)} panels, but {len(manifests)} manifests of samples")
    means, stds = np.array(dataset["means"], float), np.array(dataset["stds"], float)
    weights = np.array(dataset["weights"], float) / np.sum(dataset["weights"])
    low, high = (means - 5 * stds[:, None]).min(0), (means + 5 * stds[:, None]).max(0)
    across, down = np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True)))
    plane = np.stack([across, down], -1)[..., None, :]
    squares = ((plane - means) ** 2).sum(-1) / (2 * stds**2)
    density = (weights / stds**2 * np.exp(-squares)).sum(-1)
    shape = float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.3, 2.0))
    figure, axes = plots.new(1, len(panels), size=(4.2 * len(panels), 4.2 * shape + 1.3))
    for panel, (label, point), path in zip(axes[0], panels, manifests, strict=True):
        levels = density.max() * np.exp([-4.5, -2.0, -0.5])  # 3, 2 and 1 standard deviations of the highest mode
        panel.contour(across, down, density, levels=levels, colors=plots.GREY, linewidths=1.0, zorder=1)
        points = _points(path)
        panel.scatter(*points.T, s=6, color=plots.COLOURS[0], alpha=0.35, linewidths=0, zorder=2)
        for mode, (mean, share) in enumerate(zip(means, _shares(point, scores, len(means)), strict=True)):
            text = "?" if share is None else f"{100 * share:.1f} %"
            offset = (0, 14 + 60 * float(stds[mode] / (high[1] - low[1]) * 5))
            panel.annotate(text, mean, offset, textcoords="offset points", ha="center", fontsize=12, fontweight="bold")
        outside = int(((points < low) | (points > high)).any(1).sum())
        note = f", {outside} outside" if outside else ""
        panel.set(title=plots.plain(label), xlabel=f"{len(points):,} samples{note}", aspect="equal")
        panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _shares(point: Sequence[str], scores: Mapping[str, Any], number: int) -> list[float | None]:
    """Fraction of samples at each mode, over all experiments of a panel; None for each if none has counts."""
    by_experiment = [scores[name]["counts"] or [] for name in point if name in scores]
    counts = [repetition for repetitions in by_experiment for repetition in repetitions]
    if not counts:
        return [None] * number
    total = np.sum(counts, 0)
    if len(total) != number:
        raise ValueError(f"{', '.join(point)}: counts of {len(total)} classes, but the mixture has {number} modes")
    return [float(share) for share in total / total.sum()]


def _points(path: Path) -> np.ndarray:
    """The first samples of a manifest as points (N, 2)."""
    points: list[np.ndarray] = []
    for part in manifest.read(path).shards:
        with shards.Shard(part.path, size=part.size, sha256=part.sha256) as shard:
            points += [item["image"].reshape(-1).copy() for _, item in shard.items()]
        if len(points) >= MAX_POINTS:
            break
    stacked = np.stack(points[:MAX_POINTS])
    if stacked.shape[1] != 2:
        raise ValueError(f"{path} holds images, not points: {stacked.shape[1]} numbers each")
    return stacked
