"""What the log keeps of one update: sums over rows, micro-batches, steps and processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmd.train.parallel import BatchSplit


class UpdateLog:
    """Sums of one update by column; `columns` adds up processes and divides.

    A column that several steps of an update leave is the mean of theirs, each step counting the same.
    """

    def __init__(self, split: BatchSplit) -> None:
        self._split = split
        self._sums: dict[tuple[str, int], Tensor] = {}  # column and step -> sums, float64
        self._shape: dict[str, str] = {}
        self._step = 0

    def next_step(self) -> None:
        """What comes now is of another step."""
        self._step += 1

    def mean(self, name: str, values: Tensor, *, weights: Tensor | None = None) -> None:
        """Mean of values (b, ...) of this micro-batch's rows; `weights` (b,) of 0 leave rows out."""
        values = values.detach()
        if weights is None:
            self._add(name, "mean", values.sum(dtype=torch.float64), _count(values))
        else:
            counts = weights.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
            kept = torch.where(counts > 0, counts * values, 0.0)
            self._add(name, "mean", kept.sum(dtype=torch.float64), counts.sum(dtype=torch.float64))

    def scalar(self, name: str, value: Tensor, rows: int) -> None:
        """A mean over the `rows` rows of this micro-batch, such as a loss."""
        self._add(name, "mean", value.detach().double() * rows, value.new_full((), rows, dtype=torch.float64))

    def total(self, name: str, values: Tensor) -> None:
        """Sum of values (b,)."""
        self._add(name, "total", values.detach().sum(dtype=torch.float64))

    def spread(self, name: str, values: Tensor) -> None:
        """Mean and standard deviation of all elements, as columns `{name}/mean` and `{name}/std`."""
        values = values.detach()
        self._add(name, "spread", values.sum(dtype=torch.float64), values.double().square().sum(), _count(values))

    def binned(self, name: str, values: Tensor, bins: Tensor, num_bins: int) -> None:
        """Means of values (b,) by bin (b,), as columns `{name}0`, `{name}1`, ...; an empty bin has none."""
        values = values.detach().double()
        sums = values.new_zeros(2, num_bins)
        sums[0].index_add_(0, bins, values)
        sums[1].index_add_(0, bins, torch.ones_like(values))
        self._add(name, "binned", *sums)

    def value(self, name: str) -> Tensor:
        """The mean `name` of the step at hand, or those of all bins, over all rows and processes.

        All processes have to ask together.
        """
        total, number = self._split.add_up(self._sums[name, self._step].clone()).unflatten(0, (2, -1))
        return (total / number).squeeze()

    def columns(self) -> dict[str, float]:
        """Every column, over all processes, to be called once."""
        if not self._sums:
            return {}
        whole = self._split.add_up(torch.cat([*self._sums.values()])).tolist()
        steps: dict[str, list[dict[str, float]]] = {}
        for (name, _), sums in self._sums.items():
            found, whole = whole[: len(sums)], whole[len(sums) :]
            steps.setdefault(name, []).append(_columns(name, self._shape[name], found))
        columns: dict[str, float] = {}
        for found in steps.values():
            for column in dict.fromkeys(name for each in found for name in each):
                values = [each[column] for each in found if column in each]
                columns[column] = sum(values) / len(values)
        return columns

    def _add(self, name: str, shape: str, *sums: Tensor) -> None:
        """sums: of equal shapes."""
        key, more = (name, self._step), torch.stack(sums).flatten()
        self._shape[name] = shape
        self._sums[key] = self._sums[key] + more if key in self._sums else more


def _count(values: Tensor) -> Tensor:
    return values.new_full((), values.numel(), dtype=torch.float64)


def _columns(name: str, shape: str, sums: list[float]) -> dict[str, float]:
    if shape == "total":
        return {name: sums[0]}
    if shape == "mean":
        return {name: _ratio(sums[0], sums[1])}
    if shape == "binned":
        num = len(sums) // 2
        return {f"{name}{bin}": sums[bin] / sums[num + bin] for bin in range(num) if sums[num + bin]}
    total, squares, number = sums
    mean = total / number
    variance = (squares - number * mean * mean) / (number - 1) if number > 1 else math.nan
    return {f"{name}/mean": mean, f"{name}/std": math.sqrt(variance) if variance > 0 else max(variance, 0.0)}


def _ratio(total: float, number: float) -> float:
    return total / number if number else math.nan
