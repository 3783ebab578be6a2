"""How far the experiments are: `python -m dmd.status [EXPERIMENT ...]`, run in the folder of config.yaml.

Reads files and logs of the results and nothing else, so it works on any machine that sees the folder, while jobs of a
cluster or of this machine write to it. What the states mean is said in `dmd.cluster.job_log`; `done` says that files
are there, `snakemake -n` whether they are of the numbers that config.yaml has now.
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

from dmd.cluster.progress import STAGES, Results, Stage
from dmd.config import ConfigError, Experiments, load

UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="only these; else all that something was made or begun for")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="show it again every so many seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object per stage and line")
    parsed = parser.parse_args()
    try:
        experiments = Experiments(load(parsed.config))
        while True:
            stages = found(parsed.results, experiments, parsed.experiments)
            lines = [json.dumps(described(stage)) for stage in stages] if parsed.json else list(text(stages))
            clear = "\x1b[2J\x1b[H" if parsed.watch and sys.stdout.isatty() and not parsed.json else ""
            print(clear + "\n".join(lines), flush=True)
            if not parsed.watch:
                return
            time.sleep(parsed.watch)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")


def found(folder: Path, experiments: Experiments, names: list[str]) -> list[Stage]:
    """Stages of the named experiments, or of all that have begun, as they are now."""
    results = Results(folder, experiments)
    return [stage for name in names or results.known() for stage in results.stages(name)]


def described(stage: Stage) -> dict[str, Any]:
    """A stage as plain values: jobs by state, pace and time left of what runs, errors, newest grid."""
    failed = [job for job in stage.jobs if job.told.state in ("failed", "stopped")]
    running = [job for job in stage.jobs if job.told.state == "running"]
    paces, images = stage.paces, [pace.images for pace in stage.paces if pace.images is not None]
    return {
        "experiment": stage.experiment,
        "stage": stage.name,
        "state": stage.state,
        "owners": sorted({job.owner for job in stage.jobs}),
        "jobs": {"all": len(stage.jobs), **stage.count},
        "done": sum(pace.count for pace in paces) if paces else None,
        "total": sum(pace.total for pace in paces) if paces else None,
        "unit": paces[0].unit if paces else None,
        "per_second": sum(pace.rate for pace in paces) if paces else None,
        "images_per_second": sum(images) if images else None,
        "seconds_left": stage.seconds_left,
        "grid": str(stage.grid) if stage.grid else None,
        "logs": [str(job.log) for job in running],
        "faults": [{"log": str(job.log), "silent_s": job.told.silent, "message": job.told.message} for job in failed],
    }


def text(stages: list[Stage]) -> Iterator[str]:
    """A table of experiments and stages, then lines for stages that run, failed or stopped, and the newest grids."""
    if not stages:
        yield "Nothing was begun yet. Name experiments to see what they wait for."
        return
    columns = [name for name in STAGES if any(stage.name == name for stage in stages)]
    names = list(dict.fromkeys(stage.experiment for stage in stages))
    cells = {(stage.experiment, stage.name): _cell(stage) for stage in stages}
    rows = [["experiment", *columns], *([name, *(cells.get((name, each), "-") for each in columns)] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if any(stage.shared for stage in stages):
        yield "* of the experiment that it extends"
    told: set[str] = set()
    for stage in stages:
        for line in [*_running(stage), *_faults(stage), *_grid(stage)]:
            if line not in told:  # what is shared is told once
                yield line
            told.add(line)


def _cell(stage: Stage) -> str:
    num, done = len(stage.jobs), stage.count["done"]
    share = f" {done}/{num}" if num > 1 and done < num else ""
    return f"{stage.state}{share}{'*' if stage.shared else ''}"


def _running(stage: Stage) -> Iterator[str]:
    if stage.state != "running":
        return
    num = stage.count["running"]
    parts = [f"{num} jobs at work"] if num > 1 else []
    if paces := stage.paces:
        done, total = sum(pace.count for pace in paces), sum(pace.total for pace in paces)
        rate, images = sum(pace.rate for pace in paces), sum(pace.images or 0 for pace in paces)
        parts += [f"{done:,}/{total:,} {paces[0].unit}", f"{rate:.4g} {paces[0].unit}/s"]
        parts += [f"{images:.4g} images/s"] if images else []
        parts += [f"{_time(stage.seconds_left)} left"] if stage.seconds_left is not None else []
    else:
        parts.append("no status line yet")
    owner = next(job.owner for job in stage.jobs if job.told.state == "running")
    yield f"{owner} {stage.name}: {', '.join(parts)}"


def _faults(stage: Stage) -> Iterator[str]:
    for job in stage.jobs:
        if job.told.state == "failed":
            yield f"{job.owner} {stage.name} failed: {job.told.message} ({job.log})"
        elif job.told.state == "stopped":
            silent = f"no sign of life for {_time(job.told.silent or 0.0)}, killed or suspended?"
            yield f"{job.owner} {stage.name} {job.told.message or f'stopped: {silent}'} ({job.log})"


def _grid(stage: Stage) -> Iterator[str]:
    if stage.grid:
        yield f"{stage.jobs[0].owner} {stage.name}, newest grid: {stage.grid}"


def _time(seconds: float) -> str:
    """Seconds in the largest unit that they fill twice."""
    return next((f"{seconds / size:.1f} {unit}" for size, unit in UNITS if seconds >= 2 * size), f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
