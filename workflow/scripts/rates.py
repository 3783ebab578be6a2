"""Units of work of a job, and CPU seconds per unit, measured on finished jobs in results/."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmd.config import Experiments
from dmd.config.artifacts import PARTS
from dmd.config.rule_table import ARTIFACTS, TABLES

Rates = dict[str, dict[str, float]]  # owner of the teacher -> rule -> CPU seconds per unit of work
BLOCK = re.compile(r"(\d{5})-(\d{5})")


@dataclass(frozen=True)
class Job:
    """One job: its rule, experiment ("" for tables, charts and fetch), block of shards, and the file it fetches."""

    rule: str
    experiment: str
    block: tuple[int, int] | None
    file: str = ""


def job_of(rule: str, path: Path) -> Job:
    """The job that a rule runs for a file below results/, or for one from outside."""
    if rule == "fetch":
        return Job(rule, "", None, str(path))
    place, found = path.parts[1], BLOCK.search(path.name)
    return Job(
        rule,
        "" if place in (TABLES, "logs") else place,
        (int(found[1]), int(found[2])) if found else None,
    )


def num_images(experiments: Experiments, job: Job) -> int:
    """Images of a block; 0 for other jobs."""
    if job.block is None or job.rule not in ("pairs", "sample", "features"):
        return 0
    return experiments.num_items(job.experiment, job.rule, job.block)


def network_calls(experiments: Experiments, job: Job) -> int:
    """Network calls per image, times images, of jobs of pairs and sample."""
    return num_images(experiments, job) * calls_per_image(experiments, job) if job.rule in ("pairs", "sample") else 0


def calls_per_image(experiments: Experiments, job: Job) -> int:
    """Heun makes 2 steps - 1 calls, PNDM steps + 1, a student those of `sample.calls`."""
    section = experiments.section(job.experiment, job.rule)
    if section.solver.name == "student":
        method = experiments.section(job.experiment, "distill").method
        return int(section.calls or method.final_calls())
    steps = int(section.solver.steps)
    twice = dict.fromkeys(("heun", "heun-churn", "heun-discrete"), 2 * steps - 1)
    return {**twice, "pndm": steps + 1}.get(section.solver.name, steps)


def work(experiments: Experiments, job: Job) -> int:
    """Units of work of a job.

    Updates (teacher, and parts of section pipeline), passes of a network over a batch, where one with its backward pass
    counts 3 (distill), network calls on an image (pairs, sample), images (features), or 1 (all others).
    """
    if job.rule in ("teacher", *PARTS):
        training = experiments.training(job.experiment, job.rule)
        return sum(phase.updates for phase in training.method.phases) if training else 1
    if job.rule == "distill":
        from workflow.scripts import memory, stand_in  # imports torch, which nothing else here needs

        return stand_in.batch_passes(memory.section(experiments, job.experiment))
    return network_calls(experiments, job) or num_images(experiments, job) or 1


def rate_owner(experiments: Experiments, experiment: str) -> str:
    """The experiment whose rates apply: the owner of the teacher, whose network determines the time."""
    return experiments.owner(experiment, "teacher") if experiments.has(experiment, "teacher") else experiment


def measured_rates(experiments: Experiments) -> Rates:
    """CPU seconds per unit of work of finished jobs in results/, by owner of the teacher and rule."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for path, job in _finished(experiments):
        with open(path, newline="") as stream:
            row: dict[str, Any] = next(csv.DictReader(stream, delimiter="\t"), {})
        seconds = next((float(row[key]) for key in ("cpu_time", "s") if _is_number(row.get(key))), 0.0)
        total = sums[rate_owner(experiments, job.experiment), job.rule]
        total[0] += seconds
        total[1] += work(experiments, job)
    rates: Rates = defaultdict(dict)
    for (name, rule), (seconds, units) in sorted(sums.items()):
        if units:
            rates[name][rule] = float(f"{seconds / units:.3g}")
    return dict(rates)


def _finished(experiments: Experiments) -> Iterator[tuple[Path, Job]]:
    """Benchmark files in results/ of experiments that still exist."""
    for path in sorted(Path("results").glob("*/benchmarks/*.tsv")):
        rule = BLOCK.sub("", path.stem).rstrip("-")
        job = job_of(rule, Path("results", path.parts[1], path.name))
        if rule in ARTIFACTS and job.experiment in experiments.merged and experiments.has(job.experiment, rule):
            yield path, job


def _is_number(text: str | None) -> bool:
    """Whether a benchmark column holds a positive number (`-` and NA stand for none)."""
    return bool(re.fullmatch(r"\d+(\.\d+)?", text or "")) and float(text or 0) > 0
