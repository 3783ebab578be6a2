"""Stage tables: our rows, each a mean over training seeds, with the published ones below; markdown and CSV."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dmd.cluster import job
from dmd.data import score_files
from dmd.provenance import record
from dmd.report.table_text import COLUMNS, HERE, OPTIONAL, Row, compared, text

BESIDE = {"clip": "clips", "latency": "latencies"}  # column -> score files whose value it shows


def run(
    *,
    scores: list[Path],
    classes: list[Path] | None = None,
    clips: list[Path] | None = None,
    latencies: list[Path] | None = None,
    markdown: Path,
    csv: Path,
    rows: list[dict[str, Any]],
    paper: list[dict[str, Any]] | None = None,
    title: str = "",
) -> None:
    """Writes one table twice: rounded for readers, and with all digits.

    Args:
        scores: fid.json files; their field `experiment` says whose they are.
        classes, clips, latencies: classes.json, clip.json and latency.json files, likewise; they add the label
            accuracy, the CLIP score and the seconds an image takes.
        rows: {"label", "experiments": the training seeds of one row, "teacher": a name of the teacher behind them}. A
            row without a score stays empty. A row with "published": {"label", "dataset"} measures what this published
            row is about, and stands beside it.
        paper: published rows {"label", "value", "network_calls", "dataset", "clip", "latency", "note"}; all but the
            label may be missing.
        title: heading of the markdown.

    Raises:
        ValueError: a damaged file, two scores of one experiment, a row that mixes metrics or references, or one beside
            a published row that does not exist or has one already.
    """
    with record.exclusive(markdown):
        others = {"classes": classes or [], "clips": clips or [], "latencies": latencies or []}
        inputs = record.check_inputs(scores=scores, **others)
        found = score_files.by_experiment(scores)
        beside = {name: score_files.by_experiment(paths) for name, paths in others.items()}
        table = [_row(row, found, beside) for row in rows]
        _add_ratios(table)
        table += _published(rows, table, paper or [])
        shown = [column for column in COLUMNS if column not in OPTIONAL or any(column in row for row in table)]
        frame = pd.DataFrame(table, columns=[column for column in shown if column not in HERE])
        with record.publish(csv, stage="tables", inputs=inputs) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
        with record.publish(markdown, stage="tables", inputs=inputs) as temporary:
            temporary.write_text(text(table, title), encoding="utf-8")


def _published(rows: Sequence[Mapping[str, Any]], table: Sequence[Row], paper: Sequence[Row]) -> list[Row]:
    """The published rows, and under `here` what of ours stands beside each."""
    found: list[Row] = [{"source": "published", **row} for row in paper]
    for row, line in zip(rows, table, strict=True):
        if (named := row.get("published")) is None:
            continue
        same = [each for each in found if all(each.get(key) == value for key, value in named.items())]
        if len(same) != 1 or "here" in same[0]:
            known = "; ".join(f"{each['label']} ({each.get('dataset')})" for each in found if "here" not in each)
            raise ValueError(f"row {row['label']!r} cannot stand beside the published {named}; free are: {known}")
        same[0] |= {"here": compared(line), **{f"{key}_here": line[key] for key in BESIDE if line.get(key) is not None}}
        line["beside"] = True
    return found


def _row(row: Mapping[str, Any], scores: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Row:
    """One of our rows: mean over its experiments; a single experiment shows the spread of its sample sets."""
    present = [scores[name] for name in row["experiments"] if name in scores]
    line: Row = {"source": "ours", "label": row["label"], "experiments": " ".join(row["experiments"])}
    line["teacher"] = row.get("teacher")
    for column, kind in BESIDE.items():
        if values := [others[kind][name]["value"] for name in row["experiments"] if name in others[kind]]:
            line[column] = statistics.fmean(values)
    networks = {others["clips"][name].get("metric", "clip") for name in row["experiments"] if name in others["clips"]}
    if unpinned := sorted(networks - {"clip"}):
        line["note"] = f"CLIP score of {', '.join(unpinned)}, whose digest evaluate.clip.sha256 does not pin"
    if not present:
        return line
    for field in ("metric", "reference", "features", "network_calls"):
        values = [score[field] for score in present]
        if any(value != values[0] for value in values):
            raise ValueError(f"row {row['label']!r} mixes several values of {field}: {values}")
    first = present[0]
    single = len(present) == 1
    values = first["values"] if single else [score["value"] for score in present]
    classes = others["classes"]
    accuracies = [classes[name].get("accuracy") for name in row["experiments"] if name in classes]
    known = [accuracy["value"] for accuracy in accuracies if accuracy]
    return {
        **line,
        "experiments": " ".join(score["experiment"] for score in present),
        "dataset": first["reference"]["name"],
        "reference": first["reference"],
        "metric": first["metric"],
        "value": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values) if single and len(values) > 1 else None,
        "num": len(values),
        "spread": "sample sets" if single else "trainings",
        "network_calls": first["network_calls"],
        "training": _mean_of("training", present),
        "floor": first["floor"]["mean"],
        "floor_std": first["floor"]["std"],
        "floor_of": _floor_of(first),
        "accuracy": statistics.fmean(known) if known else None,
    }


def _floor_of(score: Mapping[str, Any]) -> str:
    """What the floor was drawn from: moments, the split that is not beside the distance, or all images."""
    if score["floor"].get("kind") == "gaussian":
        return "moments"
    beside = {"training": "held_out", "held_out": "training"}
    return next((split for other, split in beside.items() if other in score), "all")


def _mean_of(split: str, scores: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean distance to the images of a split; None where they were not compared with, or are the reference."""
    return (
        statistics.fmean(score[split]["value"] for score in scores) if all(split in each for each in scores) else None
    )


def _add_ratios(table: Sequence[Row]) -> None:
    """Adds each row's distance over its teacher's: the row with the most calls of equal teacher, metric, reference."""
    for row in table:
        if "value" not in row:
            continue
        same = [
            other
            for other in table
            if "value" in other and all(other[key] == row[key] for key in ("teacher", "metric", "reference"))
        ]
        teacher = max(same, key=lambda other: other["network_calls"])
        if teacher["network_calls"] > 1 and teacher["value"] > 0:
            row["ratio"] = row["value"] / teacher["value"]


if __name__ == "__main__":
    job.main(run)
