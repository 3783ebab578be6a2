"""Methods of table `methods` with a quarter of their updates, one seed: python -m bench.methods_quick --folder FOLDER.

Runs each method once through the whole workflow, as `make methods QUICK=1` does, and prints a table. It shows that
each method runs, not how good it is. The folder keeps what is made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.derived_runs import DerivedRuns
from dmd.config import Experiments

TABLE, SHOWN = "methods", "methods-quick"
SHARE = 0.25
COUNTS = ("stage_updates", "tangent_warmup")  # keys of methods that count updates


def shorter(experiments: Experiments, name: str) -> dict[str, Any]:
    """The experiment with `SHARE` of the updates of its distillation."""
    method: Any = experiments.section(name, "distill.method").with_defaults()
    phases = [phase | {"updates": max(1, round(SHARE * phase["updates"]))} for phase in method["phases"]]
    counts = {key: round(SHARE * method[key]) for key in COUNTS if key in method}
    return {"extends": name, "distill": {"method": {"phases": phases, **counts}}}


def add(runs: DerivedRuns, experiments: Experiments, name: str) -> str:
    """Adds the shorter experiment, and that of its teacher if it is a student; its name, or `name` of a teacher."""
    if not experiments.distilled(name):
        return name
    section, teacher = shorter(experiments, name), experiments.section(name, "teacher")
    if teacher.kind == "experiment":
        section["teacher"] = {"kind": "experiment", "name": add(runs, experiments, teacher.name)}
    runs.add(f"quick-{name}", section)
    return f"quick-{name}"


def prepared(folder: Path, cores: str) -> DerivedRuns:
    """The folder with all experiments and the table."""
    runs = DerivedRuns(folder, cores)
    experiments = Experiments(runs.shipped)
    shown = [
        {"label": row.label, "experiments": [add(runs, experiments, row.experiments[0])]}
        for row in runs.shipped.tables[TABLE].rows
    ]
    runs.add_table(SHOWN, {"title": "Methods with a quarter of their updates, one seed", "rows": shown})
    runs.experiments()
    return runs


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where configuration and results lie")
    parser.add_argument("--cores", default="all")
    parsed = parser.parse_args()
    runs = prepared(parsed.folder, parsed.cores)
    if not runs.make([f"tables/{SHOWN}.md"]):
        sys.exit("error: a method failed, see above")
    print((runs.results / "tables" / f"{SHOWN}.md").read_text())


if __name__ == "__main__":
    main()
