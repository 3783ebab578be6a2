"""What the methods of a table reach, and what they cost: python -m bench.methods_report [TABLE].

Reads the results of the table's experiments, which have to be up to date, and writes bench/results/TABLE-runs.csv, with
a line for each experiment. A line of an earlier time stays while the configuration still describes the same run, so
that a table whose trainings take longer than a day can be made in parts. From all lines it writes TABLE-report.csv and
.md, with a line per row of the table: the distance over the floor, unbiased KID, recall, label accuracy, copies, passes
of a network over one image in the training (a pass with its backward pass counts 3), and CPU seconds of the training;
below them the paired differences that the table asks for. And TABLE-passes.png, the distance over the floor against
these passes, with the recall. The seconds are those of Snakemake's benchmark files, up to 30 too few, since it looks at
a process every 30 seconds; a training that went on from a checkpoint has none, since they would be of its last run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from dmd.config import Experiments, load
from dmd.config.experiment import Row, Table
from dmd.provenance import tensor_files
from dmd.provenance.files import canonical_json
from dmd.report import paired_differences, plots
from dmd.report.table_text import EMPTY, rounded
from workflow.scripts.memory import section
from workflow.scripts.stand_in import image_passes

OUTPUT = Path(__file__).parent / "results"
COLUMNS = {
    "label": "method",
    "calls": "calls",
    "seeds": "seeds",
    "distance": "distance",
    "excess": "over the floor",
    "kid": "KID",
    "recall": "recall",
    "accuracy": "label accuracy",
    "copies": "nearer to training images",
    "passes": "passes, millions",
    "seconds": "seconds",
}
SCORES = ("fid", "kid", "prdc", "classes", "memorisation")
SPREAD = ("distance", "kid", "recall")  # columns with a standard deviation over seeds


def measured(results: Path, experiments: Experiments, name: str) -> dict[str, float] | None:
    """The figures of one experiment; None if it has no score yet. SystemExit if its student is of other settings."""
    folder = results / name
    if not (folder / "fid.json").is_file():
        return None
    found = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in SCORES}
    values = {
        "calls": found["fid"]["network_calls"],
        "distance": found["fid"]["value"],
        "excess": found["fid"]["value"] - found["fid"]["floor"]["mean"],
        "kid": found["kid"]["value"],
        "recall": _value(found["prdc"]["recall"]),
        "accuracy": _value(found["classes"]["accuracy"]),
        "copies": _value(found["memorisation"]["nearer"]),
    }
    if experiments.distilled(name):
        owner = results / experiments.owner(name, "distill")
        student = owner / "distill" / "generator.safetensors"
        if student.is_file() and tensor_files.load_metadata(student)["spec"] != experiments.spec(name, "distill"):
            raise SystemExit(f"{student} is of other settings than the configuration has: make {folder}/fid.json again")
        values["passes"] = image_passes(section(experiments, name)) / 1e6
        values["seconds"] = _seconds(owner)
    return {column: float(value) for column, value in values.items() if value is not None}


def _value(score: dict[str, Any] | None) -> float | None:
    return None if score is None else score["value"]


def _seconds(folder: Path) -> float | None:
    """CPU seconds of the distillation in an experiment's folder, as Snakemake measured them; None where it resumed."""
    path, log = folder / "benchmarks" / "distill.tsv", folder / "logs" / "distill.log"
    if not path.is_file() or not log.is_file() or "continuing at update" in log.read_text():
        return None
    with path.open(newline="") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    return float(row["cpu_time"])


def line(row: Row, found: list[dict[str, float]]) -> dict[str, Any]:
    """A line of the report: means over the seeds, and standard deviations under NAME_std."""
    values: dict[str, Any] = {"label": row.label, "seeds": len(found)}
    for column in COLUMNS:
        numbers = [each[column] for each in found if column in each]
        if numbers:
            values[column] = statistics.fmean(numbers)
            if column in SPREAD and len(numbers) > 1:
                values[f"{column}_std"] = statistics.stdev(numbers)
    return values


def text(lines: list[dict[str, Any]]) -> str:
    """The report as a markdown table."""
    head = f"| {' | '.join(COLUMNS.values())} |\n|---|{'---:|' * (len(COLUMNS) - 1)}\n"
    return head + "".join(f"| {' | '.join(_cell(each, column) for column in COLUMNS)} |\n" for each in lines)


def _cell(each: dict[str, Any], column: str) -> str:
    value = each.get(column)
    if value is None:
        return EMPTY
    if column in ("label", "calls", "seeds"):
        return str(value) if column == "label" else f"{value:.0f}"
    if column in ("accuracy", "copies"):
        return f"{100 * value:.1f} %"
    spread = f" ± {rounded(each[f'{column}_std'])}" if f"{column}_std" in each else ""
    return rounded(value) + spread


def chart(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Distance over the floor and recall against the passes of the training, each method with its name."""
    figure, axes = plots.new(1, 2, size=(12, 5.5))
    plots.heading(figure, title)
    trained = [each for each in lines if "passes" in each]
    others = [each for each in lines if "passes" not in each]
    for ax, column, label in ((axes[0, 0], "excess", "distance over the floor"), (axes[0, 1], "recall", "recall")):
        shown = [each for each in trained if column in each]
        ax.scatter([each["passes"] for each in shown], [each[column] for each in shown], color=plots.COLOURS[0])
        for each in shown:
            place = each["passes"], each[column]
            ax.annotate(plots.plain(each["label"]), place, textcoords="offset points", xytext=(5, 3), fontsize=7)
        for each in others:
            if column in each:
                ax.axhline(each[column], color=plots.GREY, linestyle=":")
                ax.annotate(
                    plots.plain(each["label"]), (0, each[column]), xycoords=("axes fraction", "data"), fontsize=7
                )
        ax.set(xscale="log", xlabel="passes over an image in the training, millions", ylabel=label)
    if all(each["excess"] > 0 for each in lines):
        axes[0, 0].set_yscale("log")
    plots.save(figure, path)


def described(experiments: Experiments, name: str) -> str:
    """A digest of all that the scores of an experiment are made from, as the configuration describes it."""
    made = {"spec": experiments.spec(name, "evaluate"), "lineage": experiments.lineage(name, "evaluate")}
    return hashlib.sha256(canonical_json(made).encode()).hexdigest()[:16]


def runs(path: Path, results: Path, experiments: Experiments, table: Table) -> dict[str, dict[str, float]]:
    """The figures of the experiments of a table, by name, from their results or else from `path`, which is updated."""
    kept = {}
    if path.is_file():
        with path.open(newline="") as file:
            kept = {line["experiment"]: line for line in csv.DictReader(file)}
    found, lines = {}, []
    for name in dict.fromkeys(name for row in table.rows for name in row.experiments):
        digest, values = described(experiments, name), measured(results, experiments, name)
        if values is None and name in kept and kept[name]["made_from"] == digest:
            values = {column: float(kept[name][column]) for column in COLUMNS if kept[name].get(column)}
        if values is not None:
            found[name] = values
            lines.append({"experiment": name, "made_from": digest, **values})
    columns = ["experiment", "made_from", *[column for column in COLUMNS if column not in ("label", "seeds")]]
    pd.DataFrame(lines, columns=columns).to_csv(path, index=False, lineterminator="\n")
    return found


def differences(table: Table, experiments: Experiments, found: dict[str, dict[str, float]]) -> str:
    """The differences that a table asks for, in markdown: paired by the training seed; empty if it asks for none."""
    by_label, compared = {row.label: row for row in table.rows}, []

    def of_seeds(label: str, column: str) -> dict[int, float]:
        names = [name for name in by_label[label].experiments if name in found and column in found[name]]
        trainings = {name: experiments.training(name, "distill") for name in names}
        return {training.seed: found[name][column] for name, training in trainings.items() if training is not None}

    for first, second in table.differences:
        pairs = {
            COLUMNS[column]: paired_differences.difference(of_seeds(first, column), of_seeds(second, column))
            for column in ("excess", "kid", "recall")
        }
        if any(pairs.values()):
            compared.append(((first, second), pairs))
    return "\n" + paired_differences.text(compared, "seeds") if compared else ""


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="methods", help="of config.yaml (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the files of before lie")
    parsed = parser.parse_args()
    config = load()
    experiments, table, name = Experiments(config), config.tables[parsed.table], parsed.table
    found = runs(parsed.output / f"{name}-runs.csv", parsed.results, experiments, table)
    measured_rows = [(row, [found[each] for each in row.experiments if each in found]) for row in table.rows]
    lines = [line(row, scores) for row, scores in measured_rows if scores]
    pd.DataFrame(lines).to_csv(parsed.output / f"{name}-report.csv", index=False, lineterminator="\n")
    report = f"# {table.title}\n\n{text(lines)}{differences(table, experiments, found)}"
    (parsed.output / f"{name}-report.md").write_text(report)
    chart(lines, parsed.output / f"{name}-passes.png", table.title)
    print(report)


if __name__ == "__main__":
    main()
