"""Prints what a run would make: jobs by rule, network calls, CPU time and disk, before anything starts.

python workflow/scripts/plan.py [EXPERIMENT]    of one experiment, or of the default target
python workflow/scripts/plan.py --record FILE   writes the rates of finished jobs, for machines that have none yet

CPU time comes from the benchmarks of earlier runs in results/, else from bench/results/rates.json: seconds per
unit of work, which is an update (teacher), a pass of a network over a batch, a backward one counted double (distill),
a network call on an image (pairs, sample), an image (features) or a job (all others).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dmd.config import ConfigError, load, unknown_experiment  # noqa: E402
from dmd.experiments import Experiments  # noqa: E402

Rates = dict[str, dict[str, float]]  # root experiment -> rule -> CPU seconds per unit of work
MEMBERS = {"pairs": 3, "sample": 2}  # noise, image, label; image, label
BLOCK = re.compile(r"(\d{5})-(\d{5})")


@dataclass(frozen=True)
class Job:
    """One job: its rule, experiment ("" for tables and charts) and block of shards."""

    rule: str
    experiment: str
    block: tuple[int, int] | None


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="an experiment of config.yaml")
    parser.add_argument("--record", type=Path, help="write the rates of finished jobs to this file")
    parsed = parser.parse_args()
    try:
        config = load(Path("config.yaml"), ROOT / "workflow" / "schemas" / "config.schema.yaml")
        experiments = Experiments(config)
        rates = measured_rates(experiments)
        if parsed.record:
            parsed.record.write_text(json.dumps(rates, indent=1, sort_keys=True) + "\n")
        else:
            print(table(experiments, planned(experiments, parsed.experiment), rates))
    except (ConfigError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def planned(experiments: Experiments, experiment: str | None) -> list[Job]:
    """The jobs of a dry run."""
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "-s", str(ROOT / "Snakefile")]
    if experiment is not None:
        if experiment not in experiments.merged:
            raise ConfigError(unknown_experiment(experiment, experiments.merged))
        whole = experiments.has(experiment, "sample")
        artifact = f"{experiment}/fid.json" if whole else experiments.path(experiment, "teacher")
        command.append(f"results/{artifact}")
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise ConfigError(f"the dry run failed\n{(answer.stdout + answer.stderr).strip()}")
    jobs = re.findall(r"^(?:local)?rule (\w+):.*?^    output: (\S+?),?[ \n]", answer.stdout, re.M | re.S)
    return [job_of(rule, Path(output)) for rule, output in jobs]


def job_of(rule: str, path: Path) -> Job:
    """The job that a rule runs for a file below results/."""
    place, found = path.parts[1], BLOCK.search(path.name)
    return Job(
        rule,
        "" if place in ("tables", "logs") else place,
        (int(found[1]), int(found[2])) if found else None,
    )


def num_images(experiments: Experiments, job: Job) -> int:
    """Images of a block."""
    if job.block is None or job.rule not in ("pairs", "sample", "features"):
        return 0
    section = experiments.section(job.experiment, "pairs" if job.rule == "pairs" else "sample")
    return (job.block[1] - job.block[0] + 1) * int(section["shard_size"])


def network_calls(experiments: Experiments, job: Job) -> int:
    """Calls of the network per image, times images: Heun's last step has one, its others two."""
    if job.rule not in ("pairs", "sample"):
        return 0
    solver = experiments.section(job.experiment, job.rule)["solver"]
    calls = {"one-step": 1, "euler": solver.get("steps", 1), "heun": 2 * solver.get("steps", 1) - 1}
    return num_images(experiments, job) * int(calls[solver["name"]])


def work(experiments: Experiments, job: Job) -> int:
    """Units of work of a job; see the module."""
    if job.rule == "teacher":
        return int(experiments.section(job.experiment, "teacher").get("training", {}).get("updates", 1))
    if job.rule == "distill":
        return passes(experiments.section(job.experiment, "distill"))
    return network_calls(experiments, job) or num_images(experiments, job) or 1


def passes(section: dict[str, Any]) -> int:
    """Network passes of a distillation, in batches; a forward and backward pass counts 3."""
    total = 0
    for phase in section["phases"]:
        both = phase["train"] == "both"
        matching = both and bool(section["matching_weight"] * phase["matching_scale"])
        regression = both and bool(section["regression_weight"] * phase["regression_scale"])
        fake = section["fake_score"] and (matching or (not both and bool(section["matching_weight"])))
        num_fake = phase["fake_updates"] if both else 1
        again = num_fake - 1 if both else 1  # generator passes for fake updates of their own noise
        update = 3 * regression + 4 * matching + (fake * (3 * num_fake + again) + matching * section["fake_score"])
        total += phase["updates"] * int(update)
    return total


def disk(experiments: Experiments, job: Job) -> int:
    """Bytes of the shards of a job: per member a tar header, an npy header and the data, in blocks of 512."""
    if job.rule not in MEMBERS:
        return 0
    dataset = experiments.section(job.experiment, "dataset")
    side, channels = {"digits": (8, 1), "gaussian-mixture": (1, 2)}.get(dataset["kind"], (0, 0))
    side, channels = dataset.get("resolution", side), dataset.get("channels", channels)
    arrays = MEMBERS[job.rule] - 1
    size = 512 * (arrays * (1 + math.ceil((128 + 4 * channels * side**2) / 512)) + 2)
    return num_images(experiments, job) * size


def root(experiments: Experiments, experiment: str) -> str:
    """The experiment at the top of the chain of `extends`."""
    while parent := experiments.parents.get(experiment):
        experiment = parent
    return experiment


def measured_rates(experiments: Experiments) -> Rates:
    """CPU seconds per unit of work of finished jobs in results/, by root experiment and rule."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for path, job in finished(experiments):
        with open(path, newline="") as stream:
            row: dict[str, Any] = next(csv.DictReader(stream, delimiter="\t"), {})
        seconds = next((float(row[key]) for key in ("cpu_time", "s") if is_number(row.get(key))), 0.0)
        total = sums[root(experiments, job.experiment), job.rule]
        total[0] += seconds
        total[1] += work(experiments, job)
    rates: Rates = defaultdict(dict)
    for (name, rule), (seconds, units) in sorted(sums.items()):
        rates[name][rule] = float(f"{seconds / units:.3g}")
    return dict(rates)


def finished(experiments: Experiments) -> Iterator[tuple[Path, Job]]:
    """Benchmark files in results/ of experiments that still exist."""
    for path in sorted(Path("results").glob("*/benchmarks/*.tsv")):
        rule = BLOCK.sub("", path.stem).rstrip("-")
        job = job_of(rule, Path("results", path.parts[1], path.name))
        if job.experiment in experiments.merged and experiments.has(job.experiment, rule):
            yield path, job


def is_number(text: str | None) -> bool:
    """Whether a benchmark column holds a positive number (`-` and NA stand for none)."""
    return bool(re.fullmatch(r"\d+(\.\d+)?", text or "")) and float(text or 0) > 0


def table(experiments: Experiments, jobs: list[Job], rates: Rates) -> str:
    """The plan as text, one line per rule and one for all."""
    stored = ROOT / "bench" / "results" / "rates.json"
    known: Rates = json.loads(stored.read_text()) if stored.exists() else {}
    rules = list(dict.fromkeys(job.rule for job in jobs))
    lines = [f"{'rule':18}{'jobs':>6}{'network calls':>16}{'CPU time':>12}{'disk':>12}"]
    for rule, chosen in [*((rule, [job for job in jobs if job.rule == rule]) for rule in rules), ("all", jobs)]:
        calls = sum(network_calls(experiments, job) for job in chosen)
        seconds, missing = 0.0, False
        for job in chosen:
            name = root(experiments, job.experiment)
            rate = rates.get(name, {}).get(job.rule, known.get(name, {}).get(job.rule))
            seconds += (rate or 0.0) * (work(experiments, job) if job.experiment else 1)
            missing |= rate is None and bool(job.experiment)
        size = sum(disk(experiments, job) for job in chosen) / 2**20
        time = "unknown" if missing and not seconds else f"{'>= ' if missing else ''}{seconds / 60:.1f} min"
        lines.append(f"{rule:18}{len(chosen):6}{calls:16,}{time:>12}{size:>8.1f} MiB")
    lines.append("Network calls are images times calls. CPU time is of one core; disk is that of the shards.")
    lines.append("unknown, >=: no earlier run and no rate in bench/results/rates.json for some of the jobs.")
    return "\n".join(lines if jobs else ["Nothing is to be done."])


if __name__ == "__main__":
    main()
