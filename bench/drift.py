"""Distillations that are made to collapse, and healthy ones: python -m bench.drift --folder FOLDER.

Writes bench/results/drift.json: for each run what its monitor measured, and which signs of drift `dmd.train.drift`
names after how many updates. The thresholds in that file were chosen on the runs of digits; those of Fashion-MNIST test
them. A run that was made to collapse has done so if its last distance is at least `TIMES` that of the healthy runs of
its experiment, and `FARTHER` above it: some methods withstand what is done to them. A run of digits takes about two
minutes of a core. A healthy run of Fashion-MNIST takes an hour, which is that of `make fashion` if results/ of the
folder is a link to its results; those made to collapse have a quarter of its updates. If cases are named, the file
keeps the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.derived_runs import DerivedRuns
from dmd.config import Experiments
from dmd.data import manifest as manifests
from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES
from dmd.train import drift

OUTPUT = Path(__file__).parent / "results" / "drift.json"
GUIDANCE = 15.0
STILL = 1.0e-30  # a learning rate that changes no weight
HEALTHY_SEEDS, OTHER_SEEDS = (0, 1, 2), (0,)
TIMES, FARTHER = 1.5, 0.1  # last distance of a run that collapsed, over and above the mean of healthy ones
GUIDED = "drift-guided"  # digits with a teacher that was trained with label dropout
EVERY = 15  # updates between measurements of `digits`, of which the default interval allows few with guidance
SHORT = 0.25  # share of the updates, in runs of Fashion-MNIST that are made to collapse


@dataclass(frozen=True)
class Case:
    """A kind of run.

    Attributes:
        experiment: of config.yaml; its section `distill` is changed.
        rates: factors on learning rates, by role.
        method: changed keys of the method; `fake_updates` is that of its phases.
        guided: whether the teacher of digits has to be one with label dropout.
    """

    experiment: str
    healthy: bool
    rates: Mapping[str, float] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings."""
        return HEALTHY_SEEDS if self.healthy else OTHER_SEEDS

    @property
    def of_digits(self) -> bool:
        """Whether it is a run of digits."""
        return self.experiment.startswith("digits")


CASES: dict[str, Case] = {}
for _name in ("digits", "digits-dmd2", "digits-dmd2-2", "digits-dmd2-4", "digits-sid", "fashion", "fashion-dmd2"):
    CASES[_name] = Case(_name, True)
    CASES[f"{_name}, student rate x 20"] = Case(_name, False, {"student": 20})
    CASES[f"{_name}, fake rate / 50"] = Case(_name, False, {"fake": 1 / 50})
    CASES[f"{_name}, no fake updates"] = Case(_name, False, {"fake": STILL})
    if _name != "digits-sid":
        _digits = CASES[_name].of_digits
        CASES[f"{_name}, guidance 15"] = Case(_name, False, method={"guidance": GUIDANCE}, guided=_digits)
for _name in ("digits", "fashion"):
    CASES[f"{_name}, no fake updates"] = Case(_name, False, method={"fake_updates": 0})


def derived(experiments: Experiments, case: Case, seed: int) -> dict[str, Any]:
    """The experiment of a run."""
    given: Any = experiments.section(case.experiment, "distill").with_defaults()
    method, phases = dict(case.method), given["method"]["phases"]
    if "fake_updates" in method:
        number = method.pop("fake_updates")
        phases = [phase if phase.get("train") == "fake" else phase | {"fake_updates": number} for phase in phases]
    if not case.of_digits:
        phases = [phase | {"updates": round(SHORT * phase["updates"])} for phase in phases]
    distill: dict[str, Any] = {"method": {**method, "phases": phases}, "seed": seed, "grid_every": 10**6}
    rates = {role: given["optimisers"][role]["learning_rate"] * factor for role, factor in case.rates.items()}
    distill |= {"optimisers": {role: {"learning_rate": rate} for role, rate in rates.items()}} if rates else {}
    if case.experiment == "digits":
        distill["monitor"] = {"every": EVERY}
    if not case.guided:
        return {"extends": case.experiment, "distill": distill}
    return {"extends": GUIDED, "distill": {**given, **distill, "method": {**given["method"], **distill["method"]}}}


def run_name(runs: DerivedRuns, experiments: Experiments, name: str, seed: int) -> str:
    """The experiment of a run: the shipped one if it is healthy and of Fashion-MNIST, or else one that is added."""
    case = CASES[name]
    if case.healthy and not case.of_digits:
        return f"{case.experiment}-seed{seed}" if seed else case.experiment
    added = "drift-" + re.sub(r"[^a-z0-9]+", "-", f"{name} seed{seed}")
    runs.add(added, derived(experiments, case, seed))
    return added


def measured(runs: DerivedRuns, experiments: Experiments, name: str) -> dict[str, Any] | None:
    """What the monitor of one run measured, and the phases of the run; None if the training failed."""
    path = runs.results / experiments.path(name, "distill", number=1)
    if not path.is_file():
        return None
    rows = drift.measured(manifests.read_table(path)[0].to_pylist())
    columns = {column: [round(row[column], 4) for row in rows] for column in rows[0] if "_teacher/" in column}
    places = {column: [int(row[column]) for row in rows] for column in ("update", "phase")}
    plan = experiments.section(name, "distill").method.plan()[0]  # type: ignore[union-attr]
    with (path.parents[1] / "benchmarks" / "distill.tsv").open(newline="") as file:
        seconds = float(next(csv.DictReader(file, delimiter="\t"))["cpu_time"])
    return {"phases": [[phase.first, phase.stop] for phase in plan], **places, **columns, "cpu_s": round(seconds, 1)}


def judged(found: Mapping[str, Any]) -> dict[str, int]:
    """The signs of drift that are named before the end of a run, and the number of updates before each."""
    keys = ("update", "phase", *(name for name in found if "_teacher/" in name))
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*(found[key] for key in keys), strict=True)]
    phases = [range(*each) for each in found["phases"]]
    first: dict[str, int] = {}
    for number in range(1, len(rows)):
        for sign in drift.signs(rows[:number], phases):
            first.setdefault(sign.name, int(rows[number - 1]["update"]) + 1)
    return first


def collapsed(name: str, results: Mapping[str, Any]) -> bool | None:
    """Whether the run has collapsed, by its last distance to the teacher's images; None without healthy runs."""
    experiment = name.split(",")[0]
    healthy = [results[key][FEATURES][-1] for key in results if re.fullmatch(rf"{experiment}, seed \d+", key)]
    if not healthy:
        return None
    mean, last = statistics.fmean(healthy), results[name][FEATURES][-1]
    return bool(last >= TIMES * mean and last >= mean + FARTHER)


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all, {', '.join(CASES)}")
    parser.add_argument("--folder", type=Path, help="where configuration and results lie; none: judges the file again")
    parser.add_argument("--cores", default="all")
    parsed = parser.parse_args()
    if odd := sorted(set(parsed.cases) - CASES.keys()):
        parser.error(f"{odd[0]!r} is no case")
    results: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    if parsed.folder:
        runs = DerivedRuns(parsed.folder, parsed.cores)
        runs.add(GUIDED, {"extends": "digits", "teacher": {"training": {"method": {"label_dropout": 0.1}}}})
        shipped = Experiments(runs.shipped)
        wanted = [(name, seed) for name in parsed.cases or CASES for seed in CASES[name].seeds]
        names = {run: run_name(runs, shipped, *run) for run in wanted}
        experiments = runs.experiments()
        runs.make(experiments.path(name, "distill", number=1) for name in names.values())
        for (name, seed), experiment in names.items():
            if (found := measured(runs, experiments, experiment)) is not None:
                results[f"{name}, seed {seed}"] = {"healthy": CASES[name].healthy, **found}
    write(results)
    print("\n".join(table(results)))


def write(results: dict[str, Any]) -> None:
    """Writes the file, a run per line."""
    for found in results.values():
        found["signs"] = judged(found)
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(results.items()))
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """A row for each run."""
    yield "| run | diversity, lowest and last | distance, lowest and last | contrast, last | collapsed | named after |"
    yield "|---|---:|---:|---:|---|---|"
    for name, found in sorted(results.items(), key=lambda item: (not item[1]["healthy"], item[0])):
        diversity, distance, contrast = (found[key] for key in (DIVERSITY, FEATURES, CONTRAST))
        named = ", ".join(f"{sign} {update}" for sign, update in found["signs"].items()) or "-"
        values = f"{min(diversity):.2f} {diversity[-1]:.2f} | {min(distance):.2f} {distance[-1]:.2f}"
        end = {True: "yes", False: "no", None: "-"}[collapsed(name, results)]
        yield f"| {name} | {values} | {contrast[-1]:.2f} | {end} | {named} |"


if __name__ == "__main__":
    main()
