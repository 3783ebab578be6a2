"""CPU and wall seconds of a piece of work, and summaries of repeated measurements."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Seconds of this process's CPU time, and of the wall clock."""

    cpu: float
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


def now() -> Cost:
    """Both clocks."""
    return Cost(time.process_time(), time.perf_counter())


def cost(work: Callable[[], object]) -> Cost:
    """The cost of one call of `work`."""
    start = now()
    work()
    return now() - start


def ratios(above: Sequence[Cost], below: Sequence[Cost], *, least: float = 0, most: float = 0) -> dict[str, Any]:
    """above / below per repetition, as median and range; `least` or `most` is the target for the median of CPU time.

    On an idle machine the wall-clock ratios agree with those of CPU time.
    """
    pairs = list(zip(above, below, strict=True))
    figure: dict[str, Any] = {
        "cpu": spread([a.cpu / b.cpu for a, b in pairs]),
        "wall": spread([a.wall / b.wall for a, b in pairs]),
    }
    return figure | target(figure["cpu"]["median"], least=least, most=most)


def rates(num: int, costs: Sequence[Cost], *, least: float = 0) -> dict[str, Any]:
    """num / seconds per repetition, as median and range; `least` is the target for the median by CPU time."""
    figure: dict[str, Any] = {
        "cpu": spread([num / cost.cpu for cost in costs]),
        "wall": spread([num / cost.wall for cost in costs]),
    }
    return figure | target(figure["cpu"]["median"], least=least)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum; the range shows the noise of the measurement."""
    return {
        "median": _rounded(statistics.median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
    }


def target(value: float, *, least: float = 0, most: float = 0) -> dict[str, Any]:
    """The target and whether `value` meets it; empty without a target."""
    if least:
        return {"target": f">= {least:g}", "met": value >= least}
    return {"target": f"<= {most:g}", "met": value <= most} if most else {}


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Switches off the deterministic algorithms that stages use, to time bare network calls."""
    import torch  # not at the top: child processes would inherit its memory in their peak

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
