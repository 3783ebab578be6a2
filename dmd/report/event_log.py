"""TensorBoard logs of a distillation: curves of its log rows, and its grids. Scratch, and off unless asked for."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


class EventLog:
    """One file of events in `folder`, which a run that continues writes anew: every point is there once."""

    def __init__(self, folder: Path, *, rows: Iterable[Mapping[str, float]], grids: Iterable[Path]) -> None:
        """Begins with what there is: log rows, and grids named after their update.

        Raises:
            ValueError: the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"distill.tensorboard: true, but the package tensorboard cannot be imported ({error}): "
                "pip install tensorboard, or false"
            ) from error
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step: a TensorBoard that has read the old file forgets its points
        self._writer = SummaryWriter(folder, purge_step=0, flush_secs=10)
        for row in rows:
            self.row(row)
        for path in grids:
            self.grid(path)

    def row(self, row: Mapping[str, float]) -> None:
        """A point of each curve that has a value at this update."""
        for name, value in row.items():
            if name != "update" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(row["update"]))

    def grid(self, path: Path) -> None:
        """A picture, named after the number of updates before it."""
        levels = np.asarray(Image.open(path))
        self._writer.add_image("grid", levels, int(path.stem), dataformats="HWC" if levels.ndim == 3 else "HW")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
