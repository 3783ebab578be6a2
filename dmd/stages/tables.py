"""Stage tables: rows of this project, each a mean over training seeds, above published rows; markdown and CSV."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dmd.jobs import job
from dmd.provenance import record
from dmd.report import paired_differences, score_files
from dmd.report.paired_differences import Difference, difference
from dmd.report.table_text import COLUMNS, HERE, OPTIONAL, Row, text, value_beside_published

RETRIEVED = {"top1": 1, "top5": 5}  # columns of retrieval.json -> rank up to which a prompt counts as found
COMPARABLE = ("metric", "reference", "features", "num_samples", "protocol")  # what comparable distances agree in
BESIDE = {"clip": "clips", "latency": "latencies"}  # column -> score files whose value it shows


def run(
    *,
    scores: list[Path],
    classes: list[Path] | None = None,
    kids: list[Path] | None = None,
    prdcs: list[Path] | None = None,
    clips: list[Path] | None = None,
    latencies: list[Path] | None = None,
    retrievals: list[Path] | None = None,
    markdown: Path,
    csv: Path,
    rows: list[dict[str, Any]],
    differences: list[tuple[str, str]] | None = None,
    paper: list[dict[str, Any]] | None = None,
    title: str = "",
) -> None:
    """Writes one table twice: as markdown with rounded values, and as CSV with all digits.

    Args:
        scores: fid.json files; their field `experiment` names the experiment.
        classes, kids, prdcs, clips, latencies: classes.json, kid.json, prdc.json, clip.json and latency.json files,
            which add label accuracy, kernel distance, recall, CLIP score and seconds per image.
        retrievals: retrieval.json files, which add the fractions of samples found by their prompts, and rows for real
            images and for those of the autoencoder.
        rows: {"label", "experiments": names that differ in the training seed, "teacher": name of their teacher}; with
            "of_teacher" the experiments are samples of a teacher, which differ in their start noise alone. A row
            without a score stays empty. With "published": {"label", "dataset"} a row stands beside that published row.
        differences: labels of two rows each, whose distances are compared seed by seed, and whose fractions of samples
            found by their prompts are compared prompt by prompt.
        paper: published rows {"label", "value", "network_calls", "dataset", "clip", "latency", "note"}; only the label
            is required.
        title: heading of the markdown.

    Raises:
        ValueError: a damaged file, two scores of one experiment, a row that mixes metrics or references, a published
            row that does not exist or is named by two rows, differences of a row whose experiments share noise, or of
            rows whose distances are not of the same kind.
    """
    with record.writing(markdown):
        others = {"classes": classes or [], "kids": kids or [], "prdcs": prdcs or []}
        others |= {"clips": clips or [], "latencies": latencies or [], "retrievals": retrievals or []}
        inputs = record.check_inputs(scores=scores, **others)
        distances = score_files.by_experiment(scores)
        other_scores = {name: score_files.by_experiment(paths) for name, paths in others.items()}
        table = [_row(row, distances, other_scores) for row in rows]
        _add_ratios(table)
        table += _published(rows, table, paper or [])
        table = [*_ceilings(other_scores["retrievals"]), *table]
        compared = [(labels, _compared(labels, rows, distances, other_scores)) for labels in differences or []]
        retrieved = [(labels, _retrieved(labels, rows, other_scores["retrievals"])) for labels in differences or []]
        table += [line for labels, found in compared + retrieved for line in paired_differences.rows(labels, found)]
        shown = [column for column in COLUMNS if column not in OPTIONAL or any(column in row for row in table)]
        frame = pd.DataFrame(table, columns=[column for column in shown if column not in HERE])
        with record.publish(csv, stage="tables", inputs=inputs) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
        parts = [text(table, title)]
        if compared and scores:
            parts.append(paired_differences.text(compared, "seeds"))
        if any(each is not None for _, found in retrieved for each in found.values()):
            parts.append(paired_differences.text(retrieved, "prompts"))
        with record.publish(markdown, stage="tables", inputs=inputs) as temporary:
            temporary.write_text("\n".join(parts), encoding="utf-8")


def _published(rows: Sequence[Mapping[str, Any]], table: Sequence[Row], paper: Sequence[Row]) -> list[Row]:
    """The published rows, with this project's values under `here`, `clip_here` and `latency_here`."""
    published: list[Row] = [{"source": "published", **row} for row in paper]
    for row, line in zip(rows, table, strict=True):
        if (named := row.get("published")) is None:
            continue
        same = [other for other in published if all(other.get(key) == value for key, value in named.items())]
        if len(same) != 1 or "here" in same[0]:
            free = "; ".join(f"{other['label']} ({other.get('dataset')})" for other in published if "here" not in other)
            raise ValueError(f"row {row['label']!r} cannot stand beside the published {named}; free are: {free}")
        same[0]["here"] = value_beside_published(line)
        same[0] |= {f"{column}_here": line[column] for column in BESIDE if line.get(column) is not None}
        line["beside"] = True
    return published


def _row(row: Mapping[str, Any], scores: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Row:
    """One row of this project: mean over its experiments, or over the sample sets of a single experiment."""
    scored = [scores[name] for name in row["experiments"] if name in scores]
    line: Row = {"source": "ours", "label": row["label"], "experiments": " ".join(row["experiments"])}
    line["teacher"] = row.get("teacher")
    for column, kind in BESIDE.items():
        if values := [others[kind][name]["value"] for name in row["experiments"] if name in others[kind]]:
            line[column] = statistics.fmean(values)
    for column in RETRIEVED:
        if values := [
            others["retrievals"][name][column]["value"] for name in row["experiments"] if name in others["retrievals"]
        ]:
            line[column] = statistics.fmean(values)
    networks = {others["clips"][name].get("metric", "clip") for name in row["experiments"] if name in others["clips"]}
    if unpinned := sorted(networks - {"clip"}):
        line["note"] = f"CLIP score of {', '.join(unpinned)}, whose digest evaluate.clip.sha256 does not pin"
    if not scored:
        return line
    for field in (*COMPARABLE, "network_calls"):
        values = [score.get(field) for score in scored]
        if any(value != values[0] for value in values):
            raise ValueError(f"row {row['label']!r} mixes several values of {field}: {values}")
    first = scored[0]
    single = len(scored) == 1
    values = first["values"] if single else [score["value"] for score in scored]
    classes = others["classes"]
    accuracies = [classes[name].get("accuracy") for name in row["experiments"] if name in classes]
    known = [accuracy["value"] for accuracy in accuracies if accuracy]
    kernels, recalls = ([value for _, value in _values(row, scores, others, name)] for name in ("kids", "prdcs"))
    return {
        **line,
        "experiments": " ".join(score["experiment"] for score in scored),
        "dataset": first["reference"]["name"],
        "reference": first["reference"],
        "metric": first["metric"],
        "value": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values) if single and len(values) > 1 else None,
        "num": len(values),
        "spread": "sample sets" if single or row.get("of_teacher") else "trainings",
        "network_calls": first["network_calls"],
        "training": _mean_of("training", scored),
        "floor": first["floor"]["mean"],
        "floor_std": first["floor"]["std"],
        "floor_of": _floor_of(first),
        "excess": statistics.fmean(values) - first["floor"]["mean"],
        **_mean_and_std("kid", kernels),
        **_mean_and_std("recall", recalls),
        "accuracy": statistics.fmean(known) if known else None,
    }


def _ceilings(retrievals: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of what real images, and those of the autoencoder, reach in retrieval, where the files have them."""
    labels = {"real": "real images", "autoencoder": "images of the autoencoder"}
    found: dict[tuple[str, float, float], Row] = {}
    for score in retrievals.values():
        for key, label in labels.items():
            if (reached := score.get(key)) is not None:
                line: Row = {"source": "ours", "label": label, "experiments": "", **reached}
                found.setdefault((key, reached["top1"], reached["top5"]), line)
    return [row for _, row in sorted(found.items(), key=lambda item: item[0][0] != "real")]


def _mean_and_std(name: str, values: Sequence[float]) -> Row:
    """The mean, if there are values, and under `{name}_std` the standard deviation, if there are several."""
    mean = {name: statistics.fmean(values)} if values else {}
    return mean | ({f"{name}_std": statistics.stdev(values)} if len(values) > 1 else {})


def _values(
    row: Mapping[str, Any], scores: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], name: str
) -> list[tuple[tuple[int, ...], float]]:
    """First seeds of the sample sets, and value of a score, of each experiment of a row that has one.

    `name` is "scores", "kids" or "prdcs"; of the last the value is recall.
    """
    files = scores if name == "scores" else others[name]
    found = [files[experiment] for experiment in row["experiments"] if experiment in files]
    if name == "prdcs":
        found = [{**score, "value": (score["recall"] or {}).get("value")} for score in found]
    return [(tuple(score["first_seeds"]), score["value"]) for score in found if score["value"] is not None]


def _by_start_noise(row: Mapping[str, Any], values: Sequence[tuple[tuple[int, ...], float]]) -> dict[Any, float]:
    """The values by first seeds; ValueError if two experiments of the row have the same ones."""
    found = dict(values)
    if len(found) < len(values):
        raise ValueError(
            f"row {row['label']!r} has experiments with the same start noise: `differences` pairs rows by start noise, "
            "so that it needs rows of one experiment and its training seeds"
        )
    return found


def _compared(
    labels: tuple[str, str],
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]],
) -> dict[str, Difference | None]:
    """The difference of two rows in distance, kernel distance and recall; ValueError if they cannot be compared."""
    first, second = (next(row for row in rows if row["label"] == label) for label in labels)
    one, other = ([scores[name] for name in row["experiments"] if name in scores][:1] for row in (first, second))
    for field in COMPARABLE if one and other else ():
        if (mine := one[0].get(field)) != (theirs := other[0].get(field)):
            raise ValueError(
                f"`differences` of rows {labels[0]!r} and {labels[1]!r}: their {field} differ: {mine} and {theirs}"
            )
    names = {"scores": "distance", "kids": "KID", "prdcs": "recall"}
    return {
        shown: difference(*(_by_start_noise(row, _values(row, scores, others, name)) for row in (first, second)))
        for name, shown in names.items()
    }


def _retrieved(
    labels: tuple[str, str], rows: Sequence[Mapping[str, Any]], retrievals: Mapping[str, Mapping[str, Any]]
) -> dict[str, Difference | None]:
    """The difference of two rows in the fraction of samples that are found by their prompts."""
    first, second = (next(row for row in rows if row["label"] == label) for label in labels)
    return {
        f"top {limit}": difference(*(_found_by_prompt(row, retrievals, limit) for row in (first, second)))
        for limit in RETRIEVED.values()
    }


def _found_by_prompt(
    row: Mapping[str, Any], retrievals: Mapping[str, Mapping[str, Any]], limit: int
) -> dict[str, float]:
    """The fraction of a row's samples of each prompt that have it among their `limit` nearest prompts.

    Files of version 2 of the stage lack ranks.
    """
    ranks: dict[str, list[int]] = {}
    for score in (retrievals[name] for name in row["experiments"] if name in retrievals):
        for prompt, places in score.get("ranks", {}).items():
            ranks.setdefault(prompt, []).extend(places)
    return {prompt: statistics.fmean(place <= limit for place in places) for prompt, places in ranks.items()}


def _floor_of(score: Mapping[str, Any]) -> str:
    """What the floor was drawn from: published moments, all images, or the split that samples are compared with."""
    if score["floor"].get("kind") == "gaussian":
        return "moments"
    beside = {"training": "held_out", "held_out": "training"}
    return next((split for other, split in beside.items() if other in score), "all")


def _mean_of(split: str, scores: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean of the distances to `split`; None if a score has no distance to it."""
    return (
        statistics.fmean(score[split]["value"] for score in scores) if all(split in score for score in scores) else None
    )


def _add_ratios(table: Sequence[Row]) -> None:
    """Adds the ratio of the excess over the floor to the teacher's.

    The teacher's row is the one of equal teacher, metric and reference with most calls. Beside a teacher at or below
    the floor there is no ratio.
    """
    for row in table:
        if "value" not in row:
            continue
        same = [
            other
            for other in table
            if "value" in other and all(other[key] == row[key] for key in ("teacher", "metric", "reference"))
        ]
        teacher = max(same, key=lambda other: other["network_calls"])
        if teacher["network_calls"] > 1 and teacher["excess"] > 0:
            row["ratio"] = row["excess"] / teacher["excess"]


if __name__ == "__main__":
    job.main(run)
