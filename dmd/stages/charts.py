"""Stage charts: distance over network calls or over pairs, the paper's Figure 3, and images from the same noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from dmd.jobs import job
from dmd.provenance import record
from dmd.report import plots
from dmd.report.figure3 import draw_figure3
from dmd.report.score_files import by_experiment

Series = Mapping[str, Any]


def run(
    *,
    inputs: list[Path],
    output: Path,
    kind: str,
    series: list[dict[str, Any]],
    title: str = "",
    value: str = "distance",
    dataset: dict[str, Any] | None = None,
) -> None:
    """Writes one chart as PNG.

    Args:
        inputs: the fid.json of each experiment, or for `figure3` its classes.json; for `figure3` and `images` also one
            manifest.parquet of samples per panel or row, in their order. A JSON file names its experiment in the field
            `experiment`.
        kind: `calls`, `pairs`, `figure3` or `images`.
        series: {"label", "points"}, where a point is a list of experiments that differ in their training seed; for
            `pairs` also "x", the number of pairs of each point. In `figure3` each point is a panel, and in `images` a
            row, with the label of its series.
        title: heading of the chart.
        value: of `calls` and `pairs`: `distance`, with a line at the floor; or `excess`, the distance over the floor.
        dataset: for `figure3`, the Gaussian mixture (means, stds, weights).

    Raises:
        ValueError: damaged input, an unknown kind, or numbers of points, pairs and manifests that do not match.
    """
    drawings = {"calls": _calls, "pairs": _pairs}
    with record.writing(output):
        digests = record.check_inputs(inputs=inputs)
        scores = by_experiment([path for path in inputs if path.suffix == ".json"])
        manifests = [path for path in inputs if path.suffix == ".parquet"]
        if kind == "figure3":
            figure = draw_figure3(scores, manifests, series, dataset)
        elif kind == "images":
            from dmd.report.image_rows import draw_image_rows  # needs torch, as no other kind does

            figure = draw_image_rows(scores, manifests, series)
        elif kind in drawings:
            figure, axes = plots.new(1, 1, size=(7.0, 4.5))
            if value == "excess":
                scores = {name: _over_the_floor(score) for name, score in scores.items()}
            drawings[kind](axes[0, 0], scores, series)
            _finish(axes[0, 0], scores, value)
        else:
            raise ValueError(f"chart kind {kind!r} is none of calls, pairs, figure3, images")
        if title:
            plots.heading(figure, title)
        with record.publish(output, stage="charts", inputs=digests) as temporary:
            plots.save(figure, temporary)


def _over_the_floor(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score with the mean of its floor subtracted from all distances, also from the floor."""
    mean = score["floor"]["mean"]
    values = [each - mean for each in score["values"]]
    return {**score, "value": score["value"] - mean, "values": values, "floor": {**score["floor"], "mean": 0.0}}


def _calls(axes: Axes, scores: Mapping[str, Any], series: Sequence[Series]) -> None:
    for index, line in enumerate(series):
        points = [_scored(point, scores) for point in line["points"]]
        positions = [scores[point[0]]["network_calls"] for point in points if point]
        _draw(axes, index, line["label"], positions, [_values(point, scores) for point in points if point])
    axes.set_xlabel("network calls per image")


def _pairs(axes: Axes, scores: Mapping[str, Any], series: Sequence[Series]) -> None:
    for index, line in enumerate(series):
        if len(line.get("x", [])) != len(line["points"]):
            raise ValueError(f"series {line['label']!r} has {len(line['points'])} points, but x is {line.get('x')}")
        points = [(x, _scored(point, scores)) for x, point in zip(line["x"], line["points"], strict=True)]
        positions = [x for x, point in points if point]
        _draw(axes, index, line["label"], positions, [_values(point, scores) for _, point in points if point])
    axes.set_xlabel("ODE pairs for the regression loss")


def _scored(point: Sequence[str], scores: Mapping[str, Any]) -> list[str]:
    """Experiments of a point that have a score."""
    return [name for name in point if name in scores]


def _values(point: Sequence[str], scores: Mapping[str, Any]) -> list[float]:
    """Distances of a point: one per training, or one per sample set if there is a single training."""
    return scores[point[0]]["values"] if len(point) == 1 else [scores[name]["value"] for name in point]


def _draw(axes: Axes, index: int, label: str, positions: Sequence[float], values: Sequence[list[float]]) -> None:
    """Draws the means of a series, with error bars of one standard deviation."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    means = [statistics.fmean(values[i]) for i in order]
    spread = [statistics.stdev(values[i]) if len(values[i]) > 1 else 0.0 for i in order]
    axes.errorbar(
        [positions[i] for i in order],
        means,
        yerr=spread,
        label=plots.plain(label),
        color=plots.COLOURS[index % len(plots.COLOURS)],
        marker=plots.MARKERS[index % len(plots.MARKERS)],
        markersize=7,
        linewidth=1.8,
        capsize=3,
        markeredgecolor="white",
    )


def _finish(axes: Axes, scores: Mapping[str, Any], value: str) -> None:
    """Scales, floor, labels and legend. Within one deviation of the floor the scale of the excess is linear."""
    floors = {(score["floor"]["mean"], score["floor"]["std"] or 0.0) for score in scores.values()}
    metrics = sorted({score["metric"] for score in scores.values()})
    if len(metrics) > 1:
        raise ValueError(f"one chart cannot show the metrics {', '.join(metrics)}")
    if len(floors) == 1:
        (mean, std), *_ = floors
        axes.axhspan(mean - std, mean + std, color=plots.GREY, alpha=0.25, linewidth=0)
        axes.axhline(
            mean, color=plots.GREY, linestyle="--", linewidth=1.2, label="floor: real images against real images"
        )
    axes.set_xscale("log")
    marked = [line for line in axes.get_lines() if line.get_marker() in plots.MARKERS]
    positions = sorted({float(x) for line in marked for x in np.atleast_1d(line.get_xdata())})
    if value == "excess":
        linear = max((std for _, std in floors), default=0.0) or 1.0
        axes.set_yscale("symlog", linthresh=linear)
        shown = [float(y) for line in marked for y in np.atleast_1d(line.get_ydata())]
        axes.set_ylim(1.2 * min([-linear, *shown]), 1.5 * max([linear, *shown]))
    else:
        axes.set_yscale("log")
    if positions:
        axes.set_xticks(positions, [f"{position:,.0f}" for position in positions])
        axes.set_xlim(positions[0] / 1.3, positions[-1] * 1.3)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    if value == "distance":
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    over = " over the floor" if value == "excess" else ""
    axes.set_ylabel(f"{metrics[0] if metrics else 'distance'}{over} (lower is better)")
    axes.legend()


if __name__ == "__main__":
    job.main(run)
