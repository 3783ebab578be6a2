"""Progress of the experiments: `python -m dmd.status [EXPERIMENT ...]`, run in the folder of config.yaml.

Reads only config.yaml and files below results/, so it works on every machine that shares the folder, also while jobs
write to it. `dmd.jobs.job_status` defines the states. `done` only means that the files exist; `snakemake -n` shows
whether they match the present config.yaml.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmd.config import ConfigError, Experiments, load, printing
from dmd.jobs.experiment_progress import STAGES, Results, Stage

UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="default: all that have a folder in results")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="refresh every SECONDS")
    parser.add_argument("--json", action="store_true", help="print JSON Lines, one object per stage")
    parsed = parser.parse_args()
    try:
        experiments = Experiments(load(parsed.config))
        while True:
            results = Results(parsed.results, experiments)
            stages = [stage for name in parsed.experiments or results.known() for stage in results.stages(name)]
            lines = [json.dumps(as_json(stage)) for stage in stages] if parsed.json else list(text(stages))
            clear = "\x1b[2J\x1b[H" if parsed.watch and sys.stdout.isatty() and not parsed.json else ""
            print(clear + "\n".join(lines if parsed.json else map(printing.line, lines)), flush=True)
            if not parsed.watch:
                return
            time.sleep(parsed.watch)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe; Python would flush stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ConfigError, OSError) as error:
        sys.exit(printing.lines(f"error: {error}"))


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")


def as_json(stage: Stage) -> dict[str, Any]:
    """A stage as plain values: jobs by state, throughput and time left of running jobs, errors, newest grid, notes."""
    ended = [job for job in stage.jobs if job.status.state in ("failed", "stopped")]
    running = [job for job in stage.jobs if job.status.state == "running"]
    throughput = stage.throughput
    return {
        "experiment": stage.experiment,
        "stage": stage.name,
        "state": stage.state,
        "owners": sorted({job.owner for job in stage.jobs}),
        "jobs": {"all": len(stage.jobs), **stage.count},
        "done": throughput and throughput.count,
        "total": throughput and throughput.total,
        "unit": throughput and throughput.unit,
        "per_second": throughput and throughput.rate,
        "images_per_second": throughput and throughput.image_rate,
        "seconds_left": stage.seconds_left,
        "grid": str(stage.grid) if stage.grid else None,
        "notes": [job.status.note for job in stage.jobs if job.status.note],
        "logs": [str(job.log) for job in running],
        "faults": [
            {"log": str(job.log), "silent_s": job.status.silent_seconds, "message": job.status.message} for job in ended
        ],
    }


def text(stages: list[Stage]) -> Iterator[str]:
    """A table of experiments and stages, then lines for stages that run, failed or stopped, grids, and notes."""
    if not stages:
        yield "No experiment has been started. Name experiments to see their stages."
        return
    columns = [name for name in STAGES if any(stage.name == name for stage in stages)]
    names = list(dict.fromkeys(stage.experiment for stage in stages))
    cells = {(stage.experiment, stage.name): _cell(stage) for stage in stages}
    rows = [["experiment", *columns], *([name, *(cells.get((name, each), "-") for each in columns)] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if any(stage.shared for stage in stages):
        yield "* artifact of an experiment that this one extends"
    yield from dict.fromkeys(  # each line once: several experiments share a stage
        line for stage in stages for line in [*_running(stage), *_faults(stage), *_grid(stage), *_notes(stage)]
    )


def _cell(stage: Stage) -> str:
    num, done = len(stage.jobs), stage.count["done"]
    share = f" {done}/{num}" if num > 1 and done < num else ""
    return f"{stage.state}{share}{'*' if stage.shared else ''}"


def _running(stage: Stage) -> Iterator[str]:
    if stage.state != "running":
        return
    num = stage.count["running"]
    parts = [f"{num} jobs running"] if num > 1 else []
    if running := stage.throughput:
        parts += [f"{running.count:,}/{running.total:,} {running.unit}", f"{running.rate:.4g} {running.unit}/s"]
        parts += [f"{running.image_rate:.4g} images/s"] if running.image_rate else []
        parts += [f"{_time(stage.seconds_left)} left"] if stage.seconds_left is not None else []
    else:
        parts.append("no progress reported yet")
    owner = next(job.owner for job in stage.jobs if job.status.state == "running")
    yield f"{owner} {stage.name}: {', '.join(parts)}"


def _faults(stage: Stage) -> Iterator[str]:
    for job in stage.jobs:
        status = job.status
        if status.state == "failed":
            yield f"{job.owner} {stage.name} failed: {status.message} ({job.log})"
        elif status.state == "stopped":
            silent = f"no status update for {_time(status.silent_seconds)}, killed or suspended?"
            yield f"{job.owner} {stage.name} {status.message or f'stopped: {silent}'} ({job.log})"


def _grid(stage: Stage) -> Iterator[str]:
    if stage.grid:
        yield f"{stage.jobs[0].owner} {stage.name}, newest grid: {stage.grid}"


def _notes(stage: Stage) -> Iterator[str]:
    for job in stage.jobs:
        if job.status.note:
            yield f"{job.owner} {stage.name}, monitor: {job.status.note}"


def _time(seconds: float) -> str:
    """A duration in the largest unit that it has at least two of."""
    return next((f"{seconds / size:.1f} {unit}" for size, unit in UNITS if seconds >= 2 * size), f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
