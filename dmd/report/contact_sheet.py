"""Images of two denoisers side by side for the same prompts and noise: which is which?"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmd.report import plots

COLUMNS = 4
CHARACTERS = 42  # of a line below two images
LINES = 3


def compared(sides: Mapping[str, Tensor], prompts: Sequence[str]) -> Figure:
    """`new` of two sides, images (N, C, H, W) in [-1, 1] by the title of their side."""
    places = [f"{place} {title}" for place, title in zip(("left", "right"), sides, strict=True)]
    return new(list(sides.values()), prompts, f"The same prompt and noise; {', '.join(places)}")


def new(sides: Sequence[Tensor], prompts: Sequence[str], title: str) -> Figure:
    """One cell for each prompt: its images of all sides, left to right, and the prompt below.

    Args:
        sides: images (N, C, H, W) in [-1, 1], each.
        prompts: N of them.
        title: above all.
    """
    columns = min(COLUMNS, len(prompts))
    rows = -(-len(prompts) // columns)
    figure, axes = plots.new(rows, columns, size=(3.4 * columns, 2.0 * rows + 0.8))
    for panel in axes.flat:
        panel.set_axis_off()
    for number, (panel, prompt) in enumerate(zip(axes.flat, prompts, strict=False)):
        images = [side[number] for side in sides]
        plots.show_images(panel, torch.stack(images), columns=len(images), gap=max(1, images[0].shape[-1] // 64))
        panel.text(0.5, -0.03, shortened(prompt), transform=panel.transAxes, ha="center", va="top", fontsize=8)
    plots.heading(figure, title)
    return figure


def shortened(prompt: str) -> str:
    """A prompt in at most `LINES` lines; `$` would begin a formula."""
    lines = textwrap.wrap(" ".join(prompt.split()), CHARACTERS, max_lines=LINES, placeholder=" ...")
    return "\n".join(lines).replace("$", r"\$")
