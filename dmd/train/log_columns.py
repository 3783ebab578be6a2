"""Log columns of one update: sums and means over rows, micro-batches, steps and processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmd.train.parallel import BatchSplit


class UpdateLog:
    """Sums of one update by column; `columns` adds them over processes and computes the means.

    If several steps of an update log a column, its value is the mean over these steps.
    """

    def __init__(self, split: BatchSplit) -> None:
        self._split = split
        self._sums: dict[tuple[str, int], Tensor] = {}  # column and step -> sums, float64
        self._reductions: dict[str, str] = {}  # by column
        self._step = 0

    def next_step(self) -> None:
        """Begins the next step of the update."""
        self._step += 1

    def mean(self, name: str, values: Tensor, *, weights: Tensor | None = None) -> None:
        """Adds values (b, ...) to a mean over all rows of the update, with weights (b,); weight 0 leaves a row out."""
        values = values.detach()
        if weights is None:
            self._add(name, "mean", values.sum(dtype=torch.float64), _count(values))
        else:
            counts = weights.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
            weighted = torch.where(counts > 0, counts * values, 0.0)
            self._add(name, "mean", weighted.sum(dtype=torch.float64), counts.sum(dtype=torch.float64))

    def scalar(self, name: str, value: Tensor, rows: int) -> None:
        """Adds a value that is already a mean over the `rows` rows of a micro-batch, such as a loss, to the mean."""
        self._add(name, "mean", value.detach().double() * rows, value.new_full((), rows, dtype=torch.float64))

    def total(self, name: str, values: Tensor) -> None:
        """Adds values (b,) to a sum over all rows."""
        self._add(name, "total", values.detach().sum(dtype=torch.float64))

    def spread(self, name: str, values: Tensor) -> None:
        """Mean and standard deviation of all elements, as columns `{name}/mean` and `{name}/std`."""
        values = values.detach()
        self._add(name, "spread", values.sum(dtype=torch.float64), values.double().square().sum(), _count(values))

    def binned(self, name: str, values: Tensor, bins: Tensor, num_bins: int, *, weights: Tensor | None = None) -> None:
        """Means of values (b,) per bin (b,), as columns `{name}0`, `{name}1`, ...; an empty bin has no value.

        `weights` (b,) are as in `mean`.
        """
        values = values.detach().double()
        counts = torch.ones_like(values) if weights is None else weights.double()
        sums = values.new_zeros(2, num_bins)
        sums[0].index_add_(0, bins, torch.where(counts > 0, counts * values, 0.0))
        sums[1].index_add_(0, bins, counts)
        self._add(name, "binned", *sums)

    def value(self, name: str) -> Tensor:
        """The mean logged as `name` in the current step, or the means of its bins, over all rows and processes.

        All processes must call this together.
        """
        total, number = self._split.add_up(self._sums[name, self._step].clone()).unflatten(0, (2, -1))
        return (total / number).squeeze()

    def columns(self) -> dict[str, float]:
        """Every column, over all processes. All processes must call this together, once per update."""
        if not self._sums:
            return {}
        values = self._split.add_up(torch.cat([*self._sums.values()])).tolist()
        steps: dict[str, list[dict[str, float]]] = {}
        for (name, _), sums in self._sums.items():
            totals, values = values[: len(sums)], values[len(sums) :]
            steps.setdefault(name, []).append(_columns(name, self._reductions[name], totals))
        columns: dict[str, float] = {}
        for by_step in steps.values():
            for column in dict.fromkeys(name for step in by_step for name in step):
                values = [step[column] for step in by_step if column in step]
                columns[column] = sum(values) / len(values)
        return columns

    def _add(self, name: str, reduction: str, *sums: Tensor) -> None:
        """Adds `sums`, which must have equal shapes, to those of a column of this step."""
        key, more = (name, self._step), torch.stack(sums).flatten()
        self._reductions[name] = reduction
        self._sums[key] = self._sums[key] + more if key in self._sums else more


def _count(values: Tensor) -> Tensor:
    return values.new_full((), values.numel(), dtype=torch.float64)


def _columns(name: str, reduction: str, sums: list[float]) -> dict[str, float]:
    if reduction == "total":
        return {name: sums[0]}
    if reduction == "mean":
        return {name: _ratio(sums[0], sums[1])}
    if reduction == "binned":
        num = len(sums) // 2
        return {f"{name}{bin}": sums[bin] / sums[num + bin] for bin in range(num) if sums[num + bin]}
    total, squares, number = sums
    mean = total / number
    variance = (squares - number * mean * mean) / (number - 1) if number > 1 else math.nan
    return {f"{name}/mean": mean, f"{name}/std": math.sqrt(variance) if variance > 0 else max(variance, 0.0)}


def _ratio(total: float, number: float) -> float:
    return total / number if number else math.nan
