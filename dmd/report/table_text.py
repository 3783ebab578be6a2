"""Tables as markdown: this project's rows, and published rows with this project's values beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dmd.config import printing

Row = dict[str, Any]
EMPTY = "-"
LEFT_ALIGNED = {"dataset", "metric", "spread", "here"}  # columns aligned to the left
FLOORS = {  # `floor_of` of a row -> note below the table
    "held_out": "Floor: distance of as many real images as samples to the held-out images: sampling noise alone.",
    "training": "Floor: distance of as many real images as samples to the training images: sampling noise alone.",
    "all": "Floor: distance of as many real images as samples to all real images: sampling noise alone.",
    "moments": "Floor for published moments: distance of as many Gaussian draws as samples to these moments.",
}
COLUMNS = {  # column -> heading in the markdown; without one it is only in the CSV
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
    "clip": "CLIP score",
    "clip_here": "CLIP score here",
    "top1": "retrieved, top 1",
    "top5": "retrieved, top 5",
    "latency": "seconds per image",
    "latency_here": "seconds here",
    "training": "to training images",
    "floor": "floor",
    "floor_std": "",
    "excess": "over the floor",
    "ratio": "ratio to teacher",
    "kid": "KID",
    "kid_std": "",
    "recall": "recall",
    "recall_std": "",
    "low": "",
    "high": "",
    "accuracy": "label accuracy",
    "experiments": "",
    "note": "",
}
HERE = (
    "here",
    "clip_here",
    "latency_here",
)  # this project's values beside a published row; in the CSV they have rows of their own
SHOWN_ALONE = (
    "clip",
    "top1",
    "top5",
    "latency",
    "note",
)  # a row with one of these has its own line, though it has no distance
OPTIONAL = (
    *SHOWN_ALONE,
    "kid",
    "kid_std",
    "recall",
    "recall_std",
    "low",
    "high",
)  # columns that the CSV has only if a row has a value; low and high are those of a confidence interval


def text(table: Sequence[Row], title: str) -> str:
    """A table as markdown.

    Args:
        table: rows with keys of `COLUMNS`. A row of this project with the key `beside` stands beside a published row;
            it also has its own line if it has a distance or a value in one of the columns `SHOWN_ALONE`.
    """
    values = ("value", *SHOWN_ALONE)
    ours = [
        row
        for row in table
        if row["source"] == "ours" and (any(_has(row, column) for column in values) or not row.get("beside"))
    ]
    published = [row for row in table if row["source"] == "published"]
    lines = [f"# {printing.markdown(title)}\n"] if title else []
    if ours:
        lines += [*_ours(ours), ""]
    if any("here" in row for row in published):
        lines += [
            "Published rows; column `here` is this project in the same setting (-: not run). Where data or features "
            "differ, compare the order of rows, not the values.",
            "",
        ]
    elif published:
        lines += ["Published rows, on other data and in other features: compare the order of rows, not the values.", ""]
    if published:
        notes = [f"{_note(row)}  " for row in published if _has(row, "note")]
        lines += [*_grid(published, "published"), *(["", *notes] if notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def value_beside_published(row: Row) -> str:
    """This project's value for a published row, or EMPTY if nothing was run.

    With several sample sets the minimum follows, as EDM publishes it. The name of the metric follows unless it is fid
    or clean-fid (FID with the released network, after TensorFlow's or clean-fid's resizing).
    """
    if not _has(row, "value"):
        return EMPTY
    smallest = f", min {rounded(row['min'])}" if _has(row, "min") else ""
    return _cell(row, "value") + smallest + ("" if row["metric"] in ("fid", "clean-fid") else f" ({row['metric']})")


def _ours(rows: Sequence[Row]) -> list[str]:
    lines = _grid(rows, "this project")
    distance = (
        "Distance: mean ± standard deviation over trainings, or over the sample sets of a single training; lower is "
        "better."
    )
    notes = [
        *([distance] if any(_has(row, "value") for row in rows) else []),
        *(note for kind, note in FLOORS.items() if any(row.get("floor_of") == kind for row in rows)),
        *(f"{_note(row)}." for row in rows if _has(row, "note")),
    ]
    if rows_with_ratio := [row for row in rows if "ratio" in row]:
        teachers = {(row["dataset"], row["teacher"]) for row in rows_with_ratio}
        same = "data" if len(teachers) == len({name for name, _ in teachers}) else "teacher and data"
        notes.append(f"Ratio: of the distance over the floor, to that of the same {same} with the most network calls.")
    return [*lines, "", *(f"{note}  " for note in notes)]


def _grid(rows: Sequence[Row], name: str) -> list[str]:
    """A markdown table of the columns that have both a heading and a value in some row."""
    shown = [column for column in COLUMNS if COLUMNS[column] and any(_has(row, column) for row in rows)]
    if "value" not in shown and not set(shown) & {*SHOWN_ALONE}:
        shown.insert(0, "value")
    lines = [
        "| " + " | ".join([name, *(COLUMNS[column] for column in shown)]) + " |",
        "|" + "---|" + "".join("---|" if column in LEFT_ALIGNED else "---:|" for column in shown),
    ]
    for row in rows:
        cells = [str(row["label"]), *(_cell(row, column) for column in shown)]
        lines.append("| " + " | ".join(map(printing.markdown, cells)) + " |")
    return lines


def _note(row: Row) -> str:
    return printing.markdown(f"{row['label']}: {row['note']}", limit=printing.LINE)


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None


def _cell(row: Row, column: str) -> str:
    if not _has(row, column):
        return EMPTY
    value = row[column]
    if column == "value":
        return rounded(value) + (f" ± {rounded(row['std'])}" if _has(row, "std") else "")
    if column in ("floor", "kid", "recall"):
        return rounded(value) + (f" ± {rounded(row[f'{column}_std'])}" if _has(row, f"{column}_std") else "")
    if column == "spread":
        return f"{row['num']} {value}" if row["num"] > 1 else "1 training, 1 sample set"
    return f"{100 * value:.1f} %" if column in ("accuracy", "top1", "top5") else rounded(value)


def rounded(value: Any) -> str:
    """Three significant digits, at least all before the point; an exponent below 0.001; integers, text unchanged."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.{max(digits, 0)}f}"
