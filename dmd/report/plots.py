"""The style of figures, and PNG files with the same bytes for the same content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from dmd.config import printing

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from torch import Tensor

DPI = 160
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito, for the colour-blind too
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one more than colours, so that more lines differ
GREY = "#6b6b6b"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def new(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """An empty figure of `size` inches, and its axes (rows, columns)."""
    matplotlib.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, axes


def plain(text: str) -> str:
    """Text from the configuration as matplotlib shows it: no formula, and in a legend although it begins with `_`."""
    shown = printing.piece(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def heading(figure: Figure, *lines: str) -> None:
    """A title above the figure, at its left edge."""
    figure.suptitle("\n".join(map(plain, lines)), fontsize=13, fontweight="bold", x=0.02, ha="left")


def save(figure: Figure, path: Path) -> None:
    """Writes `path` as PNG, without metadata such as software and date, and closes the figure."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def show_images(axes: Axes, images: Tensor, *, columns: int, gap: int = 1) -> None:
    """Draws images (N, C, H, W) in [-1, 1] as a grid, row by row, white lines of `gap` pixels between them."""
    number, channels, height, width = images.shape
    rows = -(-number // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    levels = ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    for index, level in enumerate(levels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = level[..., :3] if channels >= 3 else level[..., :1]
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
