"""Contact sheets: images of one denoiser, or of two side by side, each with its prompt or class below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmd.report import plots

COLUMNS = 4
CHARACTERS = 42  # in a line of a prompt
LINES = 3  # of a prompt
READ = 10_000  # characters of a prompt that are looked at: wrapping a long text takes long


def comparison_sheet(images: Mapping[str, Tensor], prompts: Sequence[str]) -> Figure:
    """`contact_sheet` of two denoisers.

    Args:
        images: by title of the denoiser, (N, C, H, W) in [-1, 1], from the same prompts and noise.
        prompts: N prompts.
    """
    titles = [f"{side} {title}" for side, title in zip(("left", "right"), images, strict=True)]
    return contact_sheet(list(images.values()), prompts, f"The same prompt and noise; {', '.join(titles)}")


def contact_sheet(images: Sequence[Tensor], prompts: Sequence[str], title: str) -> Figure:
    """One cell per prompt: one image of each denoiser, left to right, and the prompt below.

    Args:
        images: one tensor (N, C, H, W) in [-1, 1] per denoiser.
        prompts: N texts.
        title: heading of the figure.
    """
    columns = min(COLUMNS, len(prompts))
    rows = -(-len(prompts) // columns)
    figure, axes = plots.new(rows, columns, size=(3.4 * columns, 2.0 * rows + 0.8))
    for panel in axes.flat:
        panel.set_axis_off()
    for number, (panel, prompt) in enumerate(zip(axes.flat, prompts, strict=False)):
        cell = torch.stack([batch[number] for batch in images])
        plots.show_images(panel, cell, columns=len(cell), gap=max(1, cell.shape[-1] // 64))
        panel.text(0.5, -0.03, shortened(prompt), transform=panel.transAxes, ha="center", va="top", fontsize=8)
    plots.heading(figure, title)
    return figure


def shortened(prompt: str) -> str:
    """A prompt in at most `LINES` lines, as matplotlib shows it."""
    lines = textwrap.wrap(" ".join(prompt[:READ].split()), CHARACTERS, max_lines=LINES, placeholder=" ...")
    return "\n".join(map(plots.plain, lines))
