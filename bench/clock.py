"""CPU and wall seconds of a piece of work, and what is reported of repeated measurements."""

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
    """What one call of `work` costs."""
    start = now()
    work()
    return now() - start


def ratios(above: Sequence[Cost], below: Sequence[Cost], *, least: float = 0, most: float = 0) -> dict[str, Any]:
    """above / below of each repetition, as median and range; `least` or `most` is the target of the CPU time's median.

    The wall clock stands beside it: on a machine that does nothing else the two agree.
    """
    pairs = list(zip(above, below, strict=True))
    figure: dict[str, Any] = {
        "cpu": spread([a.cpu / b.cpu for a, b in pairs]),
        "wall": spread([a.wall / b.wall for a, b in pairs]),
    }
    return figure | target(figure["cpu"]["median"], least=least, most=most)


def rates(num: int, costs: Sequence[Cost], *, least: float = 0) -> dict[str, Any]:
    """num / seconds of each repetition, as median and range; `least` is the target of the CPU time's median."""
    figure: dict[str, Any] = {
        "cpu": spread([num / one.cpu for one in costs]),
        "wall": spread([num / one.wall for one in costs]),
    }
    return figure | target(figure["cpu"]["median"], least=least)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range; the range is the noise."""
    return {
        "median": _rounded(statistics.median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
    }


def target(value: float, *, least: float = 0, most: float = 0) -> dict[str, Any]:
    """The target and whether `value` meets it; empty where neither is given."""
    if least:
        return {"target": f">= {least:g}", "met": value >= least}
    return {"target": f"<= {most:g}", "met": value <= most} if most else {}


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """torch as it comes, for the bare side: without the deterministic algorithms that stages ask for."""
    import torch  # not above: what is started by a process that has it seems to need its memory

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
