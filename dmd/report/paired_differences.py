"""Differences of the scores of two rows of a table, paired by the seeds of their start noise, or by their prompts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmd.config import printing
from dmd.report.table_text import EMPTY, rounded

LEVEL = 0.95  # of the confidence intervals
NOTES = {  # what the pairs are -> note below the table
    "seeds": "mean over training seeds of first minus second row, same seed and same start noise",
    "prompts": "mean over prompts of first minus second row, of the trainings that were run",
}
INTERVAL = "[95 % confidence interval of Student's t]. Rows whose interval holds 0 are not told apart."


@dataclass(frozen=True)
class Difference:
    """A mean difference over `num` pairs, and its confidence interval; the interval is nan for a single pair."""

    mean: float
    low: float
    high: float
    num: int


def difference(values: Mapping[Any, float], others: Mapping[Any, float]) -> Difference | None:
    """Mean of `values` - `others` over the keys that both have; None if they share none."""
    pairs = [values[key] - others[key] for key in values if key in others]
    if not pairs:
        return None
    from scipy.stats import t

    mean, half = statistics.fmean(pairs), math.nan
    if len(pairs) > 1:
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        half = float(t.ppf((1 + LEVEL) / 2, len(pairs) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(pairs))


def rows(labels: tuple[str, str], differences: Mapping[str, Difference | None]) -> list[dict[str, Any]]:
    """The rows of the CSV for two rows of a table; `differences` by name of the score."""
    return [
        {
            "source": "difference",
            "label": f"{labels[0]} - {labels[1]}",
            "metric": name,
            "value": found.mean,
            "low": found.low,
            "high": found.high,
            "num": found.num,
        }
        for name, found in differences.items()
        if found is not None
    ]


def text(compared: Sequence[tuple[tuple[str, str], Mapping[str, Difference | None]]], pairs: str) -> str:
    """A markdown table with a line per two rows, and a column per score; `pairs` is a key of `NOTES`."""
    names = list(dict.fromkeys(name for _, differences in compared for name, each in differences.items() if each))
    lines = [f"| difference | {pairs} | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for labels, differences in compared:
        num = max((each.num for each in differences.values() if each), default=0)
        cells = [" - ".join(labels), str(num), *(_cell(differences.get(name)) for name in names)]
        lines.append("| " + " | ".join(map(printing.markdown, cells)) + " |")
    return "\n".join([*lines, "", f"Difference: {NOTES[pairs]} {INTERVAL}  "]) + "\n"


def _cell(found: Difference | None) -> str:
    if found is None:
        return EMPTY
    return rounded(found.mean) + ("" if math.isnan(found.low) else f" [{rounded(found.low)}, {rounded(found.high)}]")
