"""Stage tables: our rows, each a mean over training seeds, with the published ones below; markdown and CSV."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dmd.artifacts import record
from dmd.artifacts import scores as score_files
from dmd.stages import stage

Row = dict[str, Any]
EMPTY = "-"


def run(
    *,
    scores: list[Path],
    classes: list[Path] | None = None,
    markdown: Path,
    csv: Path,
    rows: list[dict[str, Any]],
    paper: list[dict[str, Any]] | None = None,
    title: str = "",
) -> None:
    """Writes one table twice: rounded for readers, and with all digits.

    Args:
        scores: fid.json files; their field `experiment` says whose they are.
        classes: classes.json files, likewise; they add the label accuracy.
        rows: {"label", "experiments": the training seeds of one row}. A row without a score stays empty.
        paper: published rows {"label", "value", "network_calls", "dataset"}; all but the label may be missing.
        title: heading of the markdown.

    Raises:
        ValueError: a damaged file, two scores of one experiment, or a row that mixes metrics or references.
    """
    with record.exclusive(markdown):
        inputs = record.check_inputs(scores=scores, classes=classes or [])
        found = score_files.by_experiment(scores)
        accuracies = score_files.by_experiment(classes or [])
        table = [_row(row, found, accuracies) for row in rows]
        _add_ratios(table)
        table += [{"source": "published", **row} for row in paper or []]
        frame = pd.DataFrame(table, columns=[*COLUMNS])
        with record.publish(csv, stage="tables", inputs=inputs) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
        with record.publish(markdown, stage="tables", inputs=inputs) as temporary:
            temporary.write_text(_markdown(table, title), encoding="utf-8")


COLUMNS = {  # column -> heading of the markdown
    "source": "",
    "label": "",
    "dataset": "data",
    "metric": "metric",
    "value": "distance",
    "std": "",
    "num": "",
    "spread": "spread over",
    "network_calls": "network calls",
    "ratio": "ratio to teacher",
    "training": "to training images",
    "floor": "floor",
    "floor_std": "",
    "accuracy": "label accuracy",
    "experiments": "",
}


def _row(row: Mapping[str, Any], scores: Mapping[str, Any], classes: Mapping[str, Any]) -> Row:
    """One of our rows: mean over its experiments; a single experiment shows the spread of its sample sets."""
    present = [scores[name] for name in row["experiments"] if name in scores]
    line: Row = {"source": "ours", "label": row["label"], "experiments": " ".join(row["experiments"])}
    if not present:
        return line
    for field in ("metric", "reference", "features", "network_calls"):
        values = [score[field] for score in present]
        if any(value != values[0] for value in values):
            raise ValueError(f"row {row['label']!r} mixes several values of {field}: {values}")
    first = present[0]
    single = len(present) == 1
    values = first["values"] if single else [score["value"] for score in present]
    accuracies = [classes[name].get("accuracy") for name in row["experiments"] if name in classes]
    known = [accuracy["value"] for accuracy in accuracies if accuracy]
    return {
        **line,
        "experiments": " ".join(score["experiment"] for score in present),
        "dataset": first["reference"]["name"],
        "metric": first["metric"],
        "value": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "num": len(values),
        "spread": "sample sets" if single else "trainings",
        "network_calls": first["network_calls"],
        "training": statistics.fmean(score["training"]["value"] for score in present),
        "floor": first["floor"]["mean"],
        "floor_std": first["floor"]["std"],
        "accuracy": statistics.fmean(known) if known else None,
    }


def _add_ratios(table: Sequence[Row]) -> None:
    """Adds each row's distance over its teacher's: the row of the same metric and data with the most network calls."""
    for row in table:
        if "value" not in row:
            continue
        same = [
            other
            for other in table
            if "value" in other and all(other[key] == row[key] for key in ("metric", "dataset"))
        ]
        teacher = max(same, key=lambda other: other["network_calls"])
        if teacher["network_calls"] > 1 and teacher["value"] > 0:
            row["ratio"] = row["value"] / teacher["value"]


def _markdown(table: Sequence[Row], title: str) -> str:
    ours = [row for row in table if row["source"] == "ours"]
    published = [row for row in table if row["source"] == "published"]
    lines = [f"# {title}\n"] if title else []
    lines += _grid(ours, "this project")
    notes = [
        "Distance: mean ± standard deviation over trainings, or over sets of samples of one; lower is better.",
        "Floor: the distance between as many real images and the held-out ones; sampling noise alone.",
    ]
    if any("ratio" in row for row in ours):
        notes.append("Ratio: to the row of the same data with the most network calls.")
    lines += ["", *(f"{note}  " for note in notes)]
    if published:
        lines += [
            "",
            "Published, on other data and in other features: compare the order, not the values.",
            "",
        ]
        lines += _grid(published, "published")
    return "\n".join(lines).rstrip() + "\n"


def _grid(rows: Sequence[Row], name: str) -> list[str]:
    """A markdown table of the columns that have a heading and a value in some row."""
    shown = [column for column in COLUMNS if COLUMNS[column] and any(_has(row, column) for row in rows)]
    if "value" not in shown:
        shown.insert(0, "value")
    lines = [
        "| " + " | ".join([name, *(COLUMNS[column] for column in shown)]) + " |",
        "|" + "---|" + "".join("---|" if column in TEXT else "---:|" for column in shown),
    ]
    for row in rows:
        cells = [str(row["label"]), *(_cell(row, column) for column in shown)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


TEXT = {"dataset", "metric", "spread"}


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None


def _cell(row: Row, column: str) -> str:
    if not _has(row, column):
        return EMPTY
    value = row[column]
    if column == "value":
        return rounded(value) + (f" ± {rounded(row['std'])}" if _has(row, "std") else "")
    if column == "floor":
        return rounded(value) + (f" ± {rounded(row['floor_std'])}" if _has(row, "floor_std") else "")
    if column == "spread":
        return f"{row['num']} {value}" if row["num"] > 1 else "1 training, 1 sample set"
    return f"{100 * value:.1f} %" if column == "accuracy" else rounded(value)


def rounded(value: Any) -> str:
    """Three significant digits, without an exponent from 0.001 up; whole numbers and text as they are."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.{max(digits, 0)}f}"


if __name__ == "__main__":
    stage.main(run)
