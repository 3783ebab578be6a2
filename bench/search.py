"""The search for learning rates, the same for every method: python -m bench.search --folder FOLDER.

Writes bench/results/search.json. Each experiment is run once (seed 0) with all of its learning rates multiplied by each
of `SCALES`, all else as in its section; with 1 it is the experiment itself. The judge is the Frechet distance of its
samples to 20,000 images of the teacher, drawn in 35 calls, in the features of the experiment. No held-out image has a
part in it. If no scale between the outer ones is best, the search goes on beyond the better one, `MORE` times at most.
The folder keeps what is made, so a search that was interrupted goes on. If experiments are named, the file keeps the
others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.derived_runs import ROOT, DerivedRuns
from dmd.config import Experiments
from dmd.jobs.experiment_progress import Results
from dmd.metrics.frechet import moments_distance
from dmd.metrics.moments import Moments
from dmd.provenance import tensor_files

OUTPUT = ROOT / "bench" / "results" / "search.json"
TABLE = "methods"
TEACHER, JUDGE, NUM_IMAGES = "digits-teacher", "search-teacher", 20_000
FIRST_SEED = 10**6  # other noise than that of the students
SCALES, STEP, MORE = (0.3, 1.0, 3.0), 10**0.5, 2


class Search:
    """Runs of the workflow in a folder of its own."""

    def __init__(self, folder: Path, cores: str) -> None:
        self._runs = DerivedRuns(folder, cores)
        self._shipped = Experiments(self._runs.shipped)
        samples = {"num_samples": NUM_IMAGES, "first_seed": FIRST_SEED, "repetitions": 1, "shard_size": 2000}
        self._runs.add(JUDGE, {"extends": TEACHER, "sample": samples})

    def students(self) -> list[str]:
        """The first experiment of each row of the table, without those that draw with a teacher."""
        names = [row.experiments[0] for row in self._runs.shipped.tables[TABLE].rows]
        return [name for name in names if self._shipped.distilled(name)]

    def learning_rates(self, experiment: str) -> dict[str, float]:
        """Of each optimiser of an experiment of config.yaml: what scale 1 is."""
        optimisers: Any = self._shipped.section(experiment, "distill").optimisers
        return {role: each.learning_rate for role, each in optimisers.items()}

    def distances(self, runs: list[tuple[str, float]]) -> list[float | None]:
        """The distance to the teacher's images of each experiment and scale; None where the training diverged.

        Raises:
            SystemExit: a job failed for another reason.
        """
        names = [self._add(*run) for run in runs]
        experiments = self._runs.experiments()
        blocks = {name: self._blocks(experiments, name) for name in [JUDGE, *names]}
        if not self._make(blocks):
            results = Results(self._runs.results, experiments)
            bad = [name for name in names if diverged(results, name)]
            for name in bad:
                del blocks[name]
            if not bad or not self._make(blocks):
                raise SystemExit(
                    "the search stopped: a job failed for another reason than divergence; see Snakemake's messages"
                )
        judge = self._moments(blocks[JUDGE])
        return [
            round(moments_distance(self._moments(blocks[name]), judge), 4) if name in blocks else None for name in names
        ]

    def _add(self, experiment: str, scale: float) -> str:
        """Adds an experiment with scaled learning rates, if they are other ones; its name."""
        if scale == 1:
            return experiment
        rates = {role: {"learning_rate": rate * scale} for role, rate in self.learning_rates(experiment).items()}
        name = f"search-{experiment}-{scale:.2g}".replace(".", "-")  # a name has no point
        self._runs.add(name, {"extends": experiment, "distill": {"optimisers": rates}})
        return name

    def _blocks(self, experiments: Experiments, name: str) -> list[str]:
        blocks = experiments.blocks(name, "features")
        return [experiments.path(name, "features", block) for block in blocks]

    def _make(self, blocks: dict[str, list[str]]) -> bool:
        return self._runs.make(block for each in blocks.values() for block in each)

    def _moments(self, blocks: list[str]) -> Moments:
        """Of all samples in some blocks of features."""
        parts = [tensor_files.load_some(self._runs.results / block, "count", "sum", "outer") for block in blocks]
        count, total, outer = (sum(values[1:], start=values[0]) for values in zip(*parts, strict=True))
        return Moments(int(count), total, outer)


def diverged(results: Results, experiment: str) -> bool:
    """Whether the distillation failed since a value of its log was not finite (`checkpoints.check_finite`)."""
    jobs = (job for stage in results.stages(experiment) if stage.name == "distill" for job in stage.jobs)
    return any(job.status.state == "failed" and "not finite" in (job.status.message or "") for job in jobs)


def beyond(found: dict[float, float | None]) -> float | None:
    """The scale to try next: beyond the best one if that is the lowest or highest of all; below all if all diverged."""
    tried = sorted(found)
    finite = {scale: value for scale, value in found.items() if value is not None}
    if not finite:
        return tried[0] / STEP
    best = min(finite, key=lambda scale: finite[scale])
    if best == tried[0]:
        return best / STEP
    return best * STEP if best == tried[-1] else None


def write(
    path: Path,
    results: dict[str, dict[float, float | None]],
    rates: dict[str, dict[str, float]],
    *,
    others: dict[str, Any],
) -> None:
    """Writes the file, a method per line: its learning rates at scale 1, its distances, the best scale.

    Args:
        others: what the file keeps.
    """
    shown = dict(others)
    for name, found in results.items():
        values = {f"{scale:.2g}": value for scale, value in sorted(found.items())}
        finite = {scale: value for scale, value in values.items() if value is not None}
        best = min(finite, key=lambda scale: finite[scale]) if finite else None
        shown[name] = {"learning_rates": rates[name], "distance": values, "best": best}
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in shown.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"default: the students of table {TABLE}")
    parser.add_argument("--folder", type=Path, required=True, help="where configuration and results lie")
    parser.add_argument("--cores", default="all")
    parsed = parser.parse_args()
    search = Search(parsed.folder, parsed.cores)
    others = json.loads(OUTPUT.read_text()) if parsed.experiments and OUTPUT.exists() else {}
    results: dict[str, dict[float, float | None]] = {name: {} for name in parsed.experiments or search.students()}
    runs = [(name, scale) for name in results for scale in SCALES]
    for _ in range(1 + MORE):
        for (name, scale), value in zip(runs, search.distances(runs), strict=True):
            results[name][scale] = value
        write(OUTPUT, results, {name: search.learning_rates(name) for name in results}, others=others)
        further = ((name, beyond(found)) for name, found in results.items())
        runs = [(name, scale) for name, scale in further if scale is not None]
        if not runs:
            break
    print(OUTPUT.read_text())


if __name__ == "__main__":
    main()
