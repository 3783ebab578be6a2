"""Stage pictures: images of teacher and student from the same noise, and curves of the training."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dmd.data import manifest
from dmd.data.prompts import Prompts
from dmd.jobs import job, torch_setup
from dmd.metrics import teacher_comparison as comparison
from dmd.models import loading
from dmd.provenance import record
from dmd.report import contact_sheet, plots
from dmd.report.paired_images import PairedSamplers
from dmd.sampling.sampler import Sampler
from dmd.sampling.text_states import Texts
from dmd.train import drift

NUM_POINTS = 1000  # drawn from a 2-D denoiser
SMOOTHING = 40  # a curve is a moving mean over 1/40 of the rows of the log
MEASURED = (f"{comparison.DISTANCE}/", f"{comparison.RATIO}/", f"{comparison.DIFFERENCE}/")
FIRST = (*MEASURED, "loss/")  # prefixes of the first panels
BIN = re.compile(r"(.*\D)(\d+)")


def run(
    *,
    teacher: Path,
    generator: Path,
    table: Path,
    grid: Path,
    training: Path,
    prompts: Path | None = None,
    text_encoder: Path | None = None,
    autoencoder: Path | None = None,
    solver: dict[str, Any] | None = None,
    guidance: float = 1.0,
    weights: str = "ema",
    calls: int | None = None,
    student_guidance: float = 1.0,
    first_seed: int = 0,
    num_images: int = 20,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes two PNG files.

    Args:
        teacher, generator: files of teacher and student; both draw from the same noise and labels.
        table: log of the distillation.
        grid: PNG file: images of the teacher above those of the student; for 2-D denoisers the two point clouds; with
            prompts the two images of each prompt side by side.
        training: PNG file: a curve per column of the log, and a panel per prefix of the column names.
        prompts, text_encoder: if the condition is text; image i has prompt i.
        autoencoder: if the denoisers work on latents.
        solver, guidance: of the teacher; None is the default solver of `dmd.load`.
        weights, calls, student_guidance: of the student, as in stage sample.
        first_seed, num_images: image i is drawn from seed first_seed + i; 2-D denoisers draw `NUM_POINTS` points.

    Raises:
        ValueError: a damaged input, or teacher and student of different shapes.
    """
    torch_setup.set_threads(threads)
    with record.writing(grid):
        paths = {"prompts": prompts, "text_encoder": text_encoder, "autoencoder": autoencoder}
        inputs = record.check_inputs(teacher=teacher, generator=generator, table=table, **paths)
        target = torch_setup.choose_device(device)
        original = Sampler(teacher, solver=solver, device=target, guidance=guidance)
        options: dict[str, Any] = {"weights": weights, "calls": calls, "guidance": student_guidance}
        student = Sampler(generator, solver={"name": "student"}, device=target, **options)
        if original.shape != student.shape:
            raise ValueError(f"{teacher} makes images {list(original.shape)}, {generator} makes {list(student.shape)}")
        samplers = PairedSamplers(
            original, student, None if autoencoder is None else loading.load_codec(autoencoder).to(target)
        )
        seeds = range(first_seed, first_seed + num_images)
        if prompts is not None and text_encoder is not None:
            texts = Texts(prompts, text_encoder, target, num=num_images)
            rows, states, _ = texts.encode(range(num_images))
            images = samplers.draw(seeds, fixed_labels=rows, states=states)
            figure = contact_sheet.comparison_sheet(images, Prompts(prompts).rows(rows.tolist()))
        else:
            points = samplers.shape[1:] == (1, 1)
            figure = _grid(samplers.draw(range(first_seed, first_seed + NUM_POINTS) if points else seeds))
        with record.publish(grid, stage="pictures", inputs=inputs) as temporary:
            plots.save(figure, temporary)
        rows = manifest.read_table(table)[0].to_pandas()
        with record.publish(training, stage="pictures", inputs=inputs) as temporary:
            plots.save(_training(rows), temporary)


def _grid(drawn: dict[str, Tensor]) -> Figure:
    """Figure of images (N, C, H, W) or points (N, 2, 1, 1) of teacher and student, which are given by title."""
    first = next(iter(drawn.values()))
    if first.shape[2:] == (1, 1):
        figure, axes = plots.new(1, 2, size=(9.0, 4.8))
        _clouds(axes[0], drawn)
    else:
        columns = min(len(first), 10)
        rows = -(-len(first) // columns)
        figure, axes = plots.new(2, 1, size=(8.0, 1.6 * rows + 1.2))
        for panel, (title, images) in zip(axes[:, 0], drawn.items(), strict=True):
            plots.show_images(panel, images, columns=columns)
            panel.set_title(title)
    plots.heading(figure, "The same noise, in the same order")
    return figure


def _clouds(axes: np.ndarray, drawn: dict[str, Tensor]) -> None:
    """Draws points of teacher and student; the colour of a point is the rank of the teacher's x for the same noise."""
    target = next(iter(drawn.values())).flatten(1)
    colour = (target - target.mean(0))[:, 0].argsort().argsort()
    both = torch.cat([points.flatten(1) for points in drawn.values()])
    low, high = both.quantile(0.005, 0), both.quantile(0.995, 0)
    middle, half = ((low + high) / 2).tolist(), 0.6 * float((high - low).max()) + 1e-3
    for panel, (title, points) in zip(axes, drawn.items(), strict=True):
        panel.scatter(*points.flatten(1).T.numpy(), c=colour.numpy(), cmap="viridis", s=8, alpha=0.6, linewidths=0)
        panel.set(title=title, aspect="equal", xlabel=f"{len(points):,} points, colour: the teacher's x")
        panel.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))


@dataclass
class _Panel:
    """Curves of one panel, columns of the log by label.

    Attributes:
        bins: whether each curve is one bin of the same quantity.
    """

    title: str
    columns: dict[str, str]
    bins: bool = False


def _panels(rows: pd.DataFrame) -> list[_Panel]:
    """A panel per prefix before the slash, and one per family of bins `{name}0`, `{name}1`, ...

    What the monitor measured comes first, then losses.
    """
    columns = [str(name) for name in rows]
    names = [name for name in columns if name not in ("update", "phase") and np.isfinite(_values(rows, name)).any()]
    candidates = {match[1] for name in columns if (match := BIN.fullmatch(name))}
    stems = {stem for stem in candidates if {f"{stem}0", f"{stem}1"} <= {*columns}}
    panels: dict[str, _Panel] = {}
    for name in sorted(names, key=_place):
        bin_of = BIN.fullmatch(name)
        if bin_of and bin_of[1] in stems:
            title = f"{bin_of[1].replace('/', ' ').replace('_', ' ')}, by bin"
            panels.setdefault(bin_of[1], _Panel(title, {}, bins=True)).columns[bin_of[2]] = name
        else:
            prefix, _, label = name.partition("/")
            panel = panels.setdefault(f"{prefix}/", _Panel(prefix.replace("_", " "), {}))
            panel.columns[(label or prefix).replace("_", " ")] = name
    return [*panels.values()]


def _place(name: str) -> tuple[int, str]:
    """Key that sorts columns by the place of their panels."""
    return next((place for place, prefix in enumerate(FIRST) if name.startswith(prefix)), len(FIRST)), name


def _training(rows: pd.DataFrame) -> Figure:
    """All columns of the log as curves."""
    panels = _panels(rows)
    columns = min(len(panels), 3) or 1
    lines = -(-len(panels) // columns) or 1
    figure, axes = plots.new(lines, columns, size=(4.5 * columns, 3.6 * lines))
    for unused in axes.flat[max(len(panels), 1) :]:
        unused.set_axis_off()
    if not panels:
        axes[0, 0].text(0.5, 0.5, "the log has no finite values", transform=axes[0, 0].transAxes, ha="center")
    for panel_axes, panel in zip(axes.flat, panels, strict=False):
        _draw(panel_axes, rows, panel)
    plots.heading(figure, "Training, update by update", *_drift(rows, width=36 * columns))
    return figure


def _drift(rows: pd.DataFrame, *, width: int) -> list[str]:
    """Lines of at most `width` characters with the signs of drift at the end of the training."""
    records: Any = rows.to_dict("records")
    measured = drift.measured(records)
    if not measured:
        return []
    phases = [range(int(group.min()), int(group.max()) + 1) for _, group in rows.groupby("phase")["update"]]
    return [line for sign in drift.signs(measured, phases) for line in textwrap.wrap(f"Drift: {sign}", width)]


def _draw(axes: Axes, rows: pd.DataFrame, panel: _Panel) -> None:
    """Draws the curves of a panel; a constant column is only named in the legend, unless all columns are constant."""
    moving = {label: name for label, name in panel.columns.items() if np.ptp(_finite(rows, name)) > 0}
    moving = moving or panel.columns
    ordered = sorted(panel.columns, key=int) if panel.bins else [*panel.columns]
    shades = plots.plt.get_cmap("viridis")(np.linspace(0, 0.92, len(ordered)))
    for index, label in enumerate(ordered):
        name = panel.columns[label]
        colour = shades[index] if panel.bins else plots.COLOURS[index % len(plots.COLOURS)]
        if label in moving:
            _curve(axes, rows, name, label, colour, faint=not panel.bins)
        else:
            axes.plot([], [], color=colour, label=f"{label}: always {_finite(rows, name)[0]:g}")
    for update in _phase_starts(rows):
        axes.axvline(update, color=plots.GREY, linewidth=0.6, linestyle=":")
    if all((_finite(rows, name) > 0).all() for name in moving.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set(title=panel.title, xlabel="update")
    handles, labels = axes.get_legend_handles_labels()
    if panel.bins:  # the legend lists the last bin first
        axes.legend(handles[::-1], labels[::-1], title="bin", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    else:
        axes.legend(fontsize=9)


def _curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, colour: Any, *, faint: bool) -> None:
    """Draws a moving mean over 1/40 of the rows, and, if `faint`, every row as a faint line.

    A column that the monitor measured, with values in few rows, is drawn as it is: points and the lines between them.
    """
    values, updates = pd.Series(_values(rows, column)), rows["update"]
    if column.startswith(MEASURED):
        known = np.isfinite(values)
        axes.plot(updates[known], values[known], color=colour, linewidth=1.6, label=label, marker=".", markersize=4)
        return
    width = max(1, len(values) // SMOOTHING)
    if faint and width > 1:
        axes.plot(updates, values, color=colour, alpha=0.2, linewidth=0.6)
    smooth = values.rolling(width, min_periods=1, center=True).mean()
    axes.plot(updates, smooth, color=colour, linewidth=1.6, label=label)


def _phase_starts(rows: pd.DataFrame) -> list[float]:
    """Updates at which a new phase begins."""
    if "phase" not in rows:
        return []
    changes = rows["phase"].diff().fillna(0) != 0
    return [float(update) for update in rows["update"][changes]]


def _values(rows: pd.DataFrame, column: str) -> np.ndarray:
    return pd.to_numeric(rows[column]).to_numpy(dtype=float, na_value=np.nan)


def _finite(rows: pd.DataFrame, column: str) -> np.ndarray:
    values = _values(rows, column)
    return values[np.isfinite(values)]


if __name__ == "__main__":
    job.main(run)
