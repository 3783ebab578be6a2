"""Stage pictures: teacher and generator from the same noise, and the curves of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dmd import loading
from dmd.artifacts import manifest, record
from dmd.artifacts.prompts import Prompts
from dmd.sampler import Sampler
from dmd.stages import contact_sheet, figures, stage
from dmd.stages.sides import Sides
from dmd.stages.texts import Texts

NUM_POINTS = 1000  # noises drawn of a 2-D denoiser
SMOOTHING = 40  # a curve is averaged over 1/40 of the updates


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
    solver: dict[str, Any],
    guidance: float = 1.0,
    weights: str = "ema",
    first_seed: int = 0,
    num_images: int = 20,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes two PNG files.

    Args:
        teacher, generator: their denoiser files; each picture shows both from the same noise and label.
        table: log of the distillation, one row per update.
        grid: images of the teacher above those of the generator; of 2-D denoisers both point clouds; where there are
            prompts, both images of each prompt side by side.
        training: losses, gradient norms, weight, gap per noise level, brightness, non-finite samples.
        prompts, text_encoder: of denoisers whose condition is text; image i has prompt i.
        autoencoder: of denoisers that draw latents.
        solver, guidance: of the teacher. weights: of the generator, `ema` or `raw`.
        first_seed, num_images: the noises are those of seeds first_seed, first_seed + 1, ...

    Raises:
        ValueError: a damaged input, or teacher and generator of different shapes.
    """
    stage.set_threads(threads)
    with record.exclusive(grid):
        paths = {"prompts": prompts, "text_encoder": text_encoder, "autoencoder": autoencoder}
        inputs = record.check_inputs(teacher=teacher, generator=generator, table=table, **paths)
        target = stage.choose_device(device)
        real = Sampler(teacher, solver=solver, device=target, guidance=guidance)
        student = Sampler(generator, solver={"name": "one-step"}, weights=weights, device=target)
        if real.shape != student.shape:
            raise ValueError(f"{teacher} makes {list(real.shape)}, {generator} makes {list(student.shape)}")
        sides = Sides(real, student, None if autoencoder is None else loading.load_codec(autoencoder).to(target))
        seeds = range(first_seed, first_seed + num_images)
        if prompts is not None and text_encoder is not None:
            texts = Texts(prompts, text_encoder, target, num=num_images)
            rows, states, _ = texts.of(range(num_images))
            images = sides.draw(seeds, given=rows, states=states)
            figure = contact_sheet.compared(images, Prompts(prompts).rows(rows.tolist()))
        else:
            points = sides.shape[1:] == (1, 1)
            figure = _grid(sides.draw(range(first_seed, first_seed + NUM_POINTS) if points else seeds))
        with record.publish(grid, stage="pictures", inputs=inputs) as temporary:
            figures.save(figure, temporary)
        rows = manifest.read_table(table)[0].to_pandas()
        with record.publish(training, stage="pictures", inputs=inputs) as temporary:
            figures.save(_training(rows), temporary)


def _grid(sides: dict[str, Tensor]) -> Figure:
    first = next(iter(sides.values()))
    if first.shape[2:] == (1, 1):
        figure, axes = figures.new(1, 2, size=(9.0, 4.8))
        _clouds(axes[0], sides)
    else:
        columns = min(len(first), 10)
        rows = -(-len(first) // columns)
        figure, axes = figures.new(2, 1, size=(8.0, 1.6 * rows + 1.2))
        for panel, (title, images) in zip(axes[:, 0], sides.items(), strict=True):
            figures.show_images(panel, images, columns=columns)
            panel.set_title(title)
    figures.heading(figure, "The same noise, in the same order")
    return figure


def _clouds(axes: np.ndarray, sides: dict[str, Tensor]) -> None:
    """Points of both sides, coloured by the teacher's point along x: what goes where."""
    target = next(iter(sides.values())).flatten(1)
    colour = (target - target.mean(0))[:, 0].argsort().argsort()
    every = torch.cat([points.flatten(1) for points in sides.values()])
    low, high = every.quantile(0.005, 0), every.quantile(0.995, 0)
    middle, half = ((low + high) / 2).tolist(), 0.6 * float((high - low).max()) + 1e-3
    for panel, (title, points) in zip(axes, sides.items(), strict=True):
        panel.scatter(*points.flatten(1).T.numpy(), c=colour.numpy(), cmap="viridis", s=8, alpha=0.6, linewidths=0)
        panel.set(title=title, aspect="equal", xlabel=f"{len(points):,} points, colour: the teacher's x")
        panel.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))


def _training(rows: pd.DataFrame) -> Figure:
    """Six panels; a panel whose columns are missing says so."""
    figure, axes = figures.new(2, 3, size=(13.5, 7.2))
    panels = {
        "losses": {
            "matching_loss": "matching (its value means nothing)",
            "regression_loss": "regression",
            "fake_loss": "fake denoiser",
        },
        "gradient norms": {"generator_gradient_norm": "generator", "fake_gradient_norm": "fake denoiser"},
        "weight of the matching gradient": {"matching_factor": "mean over the batch"},
        "generated images": {"generated_mean": "mean", "generated_std": "standard deviation"},
        "non-finite samples": {"nonfinite_samples": "per update"},
    }
    order = [axes[0, 0], axes[0, 1], axes[0, 2], axes[1, 1], axes[1, 2]]
    for panel, (title, columns) in zip(order, panels.items(), strict=True):
        for index, (column, label) in enumerate(columns.items()):
            _curve(panel, rows, column, label, figures.COLOURS[index])
        positive = title in ("losses", "gradient norms", "weight of the matching gradient")
        _finish(panel, title, log=positive)
    axes[1, 1].set_ylabel("pixel value, -1 to 1")
    axes[1, 2].set_ylim(0, max(1.0, axes[1, 2].get_ylim()[1]))
    _gaps(axes[1, 0], rows)
    figures.heading(figure, "Distillation, update by update")
    return figure


def _gaps(axes: Axes, rows: pd.DataFrame) -> None:
    """|real_x0 - fake_x0| for each tenth of the noise table, dark = little noise."""
    colours = figures.plt.get_cmap("viridis")(np.linspace(0, 0.92, 10))
    for number in range(10):
        label = f"{number * 10}-{number * 10 + 10} %"
        _curve(axes, rows, f"gap_bin{number}", label, colours[number], faint=False)
    _finish(axes, "gap of the denoisers, |real_x0 - fake_x0|", log=True)
    if axes.get_lines():
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], labels[::-1], title="noise level", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8
        )


def _curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, colour: Any, *, faint: bool = True) -> None:
    """Every update faintly, and a moving mean over 1/40 of all of them."""
    if column not in rows:
        return
    values = pd.to_numeric(rows[column]).astype(float)
    if not np.isfinite(values).any():
        return
    updates = rows["update"] if "update" in rows else pd.Series(np.arange(len(rows)))
    width = max(1, len(values) // SMOOTHING)
    if faint and width > 1:
        axes.plot(updates, values, color=colour, alpha=0.2, linewidth=0.6)
    smooth = values.rolling(width, min_periods=1, center=True).mean()
    axes.plot(updates, smooth, color=colour, linewidth=1.6, label=label)


def _finish(axes: Axes, title: str, *, log: bool) -> None:
    axes.set(title=title, xlabel="update")
    if not axes.get_lines():
        axes.text(0.5, 0.5, "not in this training", transform=axes.transAxes, ha="center", color=figures.GREY)
        return
    if log and all(
        (np.asarray(line.get_ydata())[np.isfinite(line.get_ydata())] > 0).all() for line in axes.get_lines()
    ):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(fontsize=9)


if __name__ == "__main__":
    stage.main(run)
