"""Tables as markdown: ours, and the published ones with ours beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
EMPTY = "-"
TEXT = {"dataset", "metric", "spread", "here"}
FLOORS = {  # what a floor is drawn from -> its note
    "held_out": "Floor: the distance between as many real images and the held-out ones; sampling noise alone.",
    "training": "Floor: the distance between as many real images and the training ones; sampling noise alone.",
    "all": "Floor: the distance between as many real images and all of them; sampling noise alone.",
    "moments": "Floor, where the data are published moments: the distance of as many Gaussian draws to these moments.",
}
COLUMNS = {  # column -> heading of the markdown
    "source": "",
    "label": "",
    "dataset": "data",
    "metric": "metric",
    "value": "distance",
    "std": "",
    "num": "",
    "here": "here",
    "spread": "spread over",
    "network_calls": "network calls",
    "ratio": "ratio to teacher",
    "clip": "CLIP score",
    "clip_here": "CLIP score here",
    "latency": "seconds an image",
    "latency_here": "seconds here",
    "training": "to training images",
    "floor": "floor",
    "floor_std": "",
    "accuracy": "label accuracy",
    "experiments": "",
    "note": "",
}
HERE = ("here", "clip_here", "latency_here")  # ours beside a published row; the CSV has them in rows of their own
OPTIONAL = ("clip", "latency", "note")  # not in a CSV where no row has them


def text(table: Sequence[Row], title: str) -> str:
    """A whole table.

    Args:
        table: rows of the keys of `COLUMNS`. A row of ours with the key `beside` is shown with the published one, and
            apart only where it has a value.
    """
    known = ("value", *OPTIONAL)
    ours = [
        row
        for row in table
        if row["source"] == "ours" and (any(_has(row, column) for column in known) or not row.get("beside"))
    ]
    published = [row for row in table if row["source"] == "published"]
    lines = [f"# {title}\n"] if title else []
    if ours:
        lines += [*_ours(ours), ""]
    if any("here" in row for row in published):
        lines += [
            "Published, and `here` what this project measured in the same setting (-: not run). Where data or features "
            "differ, compare the order, not the values.",
            "",
        ]
    elif published:
        lines += ["Published, on other data and in other features: compare the order, not the values.", ""]
    if published:
        notes = [f"{row['label']}: {row['note']}  " for row in published if _has(row, "note")]
        lines += [*_grid(published, "published"), *(["", *notes] if notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def compared(row: Row) -> str:
    """Our value as it stands beside a published one; EMPTY if nothing was run.

    With the smallest of several sample sets, which is what EDM publishes, and with the metric where that is no FID (of
    the released network, its images resized by TensorFlow's filter or by that of clean-fid).
    """
    if not _has(row, "value"):
        return EMPTY
    smallest = f", min {rounded(row['min'])}" if _has(row, "min") else ""
    return _cell(row, "value") + smallest + ("" if row["metric"] in ("fid", "clean-fid") else f" ({row['metric']})")


def _ours(rows: Sequence[Row]) -> list[str]:
    lines = _grid(rows, "this project")
    notes = [
        "Distance: mean ± standard deviation over trainings, or over sets of samples of one; lower is better.",
        *(note for kind, note in FLOORS.items() if any(row.get("floor_of") == kind for row in rows)),
        *(f"{row['label']}: {row['note']}." for row in rows if _has(row, "note")),
    ]
    if compared_rows := [row for row in rows if "ratio" in row]:
        teachers = {(row["dataset"], row["teacher"]) for row in compared_rows}
        same = "data" if len(teachers) == len({name for name, _ in teachers}) else "teacher and data"
        notes.append(f"Ratio: to the row of the same {same} with the most network calls.")
    return [*lines, "", *(f"{note}  " for note in notes)]


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
