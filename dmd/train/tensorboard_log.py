"""TensorBoard log of a training, off by default: a curve per column of the training log, and the image grids."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


class EventLog:
    """One event file in `folder`. A resumed run writes a new one, so that no point appears twice."""

    def __init__(self, folder: Path, *, rows: Iterable[Mapping[str, float]], grids: Iterable[Path]) -> None:
        """Writes the earlier log rows and the earlier grids; a grid's file name is its number of updates."""
        # Its package is of an extra; where it is missing, the job says how to install it.
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step=0: a running TensorBoard drops the points that it has read from the old file
        self._writer = SummaryWriter(folder, purge_step=0, flush_secs=10)
        for row in rows:
            self.row(row)
        for path in grids:
            self.grid(path)

    def row(self, row: Mapping[str, float]) -> None:
        """Adds a point to each curve that has a value at this update."""
        for name, value in row.items():
            if name != "update" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(row["update"]))

    def grid(self, path: Path) -> None:
        """Adds a picture, whose file name is the number of updates before it."""
        levels = np.asarray(Image.open(path))
        self._writer.add_image("grid", levels, int(path.stem), dataformats="HWC" if levels.ndim == 3 else "HW")

    def close(self) -> None:
        """Writes what is buffered, and closes the file."""
        self._writer.close()
