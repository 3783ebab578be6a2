"""Speed of updates and pairs of this tree and of the earlier version, commit 29f82d6: python -m bench.trainers.

Short segments of both alternate, each a separate process on one thread, because the speed of a machine drifts over
minutes; each ratio is that of two neighbouring segments. With --together both run at the same time on one core each,
which they swap after each pair of segments: the ratio of CPU time is then less noisy, and wall time is meaningless.
Writes bench/results/trainers.json: CPU seconds of an update, or of a shard of 64 pairs, of both; this tree divided by
the earlier version, geometric mean with the 95 % interval of Student's t; peak memory of both. If cases are named, the
file keeps the figures of the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from bench import clock, setting, trainer_segment
from bench.earlier_version.tree import ROOT, checked_out

OUTPUT = Path(__file__).parent / "results" / "trainers.json"
COMMIT = "29f82d6"
TREES = ("first", "this")
CASES = {  # network and kind -> number of updates, or of shards of pairs, in a segment
    "digits plain": 10,
    "digits shared_noise": 10,
    "bench plain": 2,
    "bench shared_noise": 2,
    "bench pairs": 4,
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Segment:
    """What one process measured: seconds per update or shard, and the peak memory of the process."""

    cpu: float
    wall: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of ratios, and the ends of its confidence interval; a single ratio has no interval (None)."""

    mean: float
    low: float | None
    high: float | None


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(map(repr, CASES))}; default: all")
    parser.add_argument("--segments", type=int, default=30, help="segments of each version and case (%(default)s)")
    parser.add_argument("--units", type=int, help="updates or shards in a segment; default: depends on the case")
    parser.add_argument("--together", action="store_true", help="run both versions at the same time, each on one core")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (%(default)s)")
    parsed = parser.parse_args()
    if unknown := [name for name in parsed.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; cases are {', '.join(map(repr, CASES))}")
    if parsed.segments < 1 or (parsed.units is not None and parsed.units < 1):
        parser.error("--segments and --units must be 1 or more")
    if parsed.together and len(os.sched_getaffinity(0)) < len(TREES):
        parser.error(f"--together needs {len(TREES)} cores")
    others = json.loads(parsed.output.read_text())["cases"] if parsed.cases and parsed.output.exists() else {}
    figures: dict[str, Any] = {"setting": _setting(parsed.segments), "cases": others}
    with checked_out(COMMIT) as first, tempfile.TemporaryDirectory() as folder:
        trees = dict(zip(TREES, (first, ROOT), strict=True))
        for name in parsed.cases or CASES:
            units = parsed.units or CASES[name]
            by_tree = run_segments(trees, Path(folder), name, parsed.segments, units, together=parsed.together)
            figures["cases"][name] = as_json(by_tree, units) | {"together": parsed.together}
            print(as_text(name, figures["cases"][name]), flush=True)
            parsed.output.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def run_segments(
    trees: dict[str, Path], folder: Path, case: str, segments: int, units: int, *, together: bool = False
) -> dict[str, list[Segment]]:
    """Runs segments of both versions in turn, or one of each at the same time, after writing their inputs."""
    by_tree: dict[str, list[Segment]] = {name: [] for name in trees}
    for name, tree in trees.items():
        _printed(_start(name, tree, folder, case, 0))
    cores = sorted(os.sched_getaffinity(0))
    for number in range(segments):
        running = {}
        for index, (name, tree) in enumerate(trees.items()):
            running[name] = _start(name, tree, folder, case, units)
            if together:
                os.sched_setaffinity(running[name].pid, {cores[(number + index) % len(trees)]})
            else:
                running[name].wait()
        for name, process in running.items():
            by_tree[name].append(Segment(**json.loads(_printed(process))))
    return by_tree


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The ratio above / below over all pairs of values."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    mean, num = statistics.mean(logs), len(logs)
    if num == 1:
        return Ratio(math.exp(mean), None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * statistics.stdev(logs) / math.sqrt(num)
    return Ratio(*(math.exp(value) for value in (mean, mean - half, mean + half)))


def as_json(by_tree: dict[str, list[Segment]], units: int) -> dict[str, Any]:
    """The results of a case as JSON values."""
    first, this = (by_tree[name] for name in TREES)
    figures: dict[str, Any] = {"units_of_a_segment": units}
    for kind in ("cpu", "wall"):
        values = {name: [getattr(segment, kind) for segment in segments] for name, segments in by_tree.items()}
        figures[f"{kind}_seconds"] = {name: clock.spread(seconds) for name, seconds in values.items()}
        figures[f"{kind}_ratio"] = dataclasses.asdict(ratio(values["this"], values["first"]))
    peaks = {name: clock.spread([segment.peak_rss_mib for segment in segments]) for name, segments in by_tree.items()}
    return figures | {"peak_rss_mib": peaks, "pairs_of_segments": min(len(first), len(this))}


def as_text(case: str, figures: dict[str, Any]) -> str:
    """The results of a case as one line of text."""
    return "; ".join(_words(case, figures))


def _words(case: str, figures: dict[str, Any]) -> Iterator[str]:
    seconds, peaks = figures["cpu_seconds"], figures["peak_rss_mib"]
    cpu = figures["cpu_ratio"]
    ends = "" if cpu["low"] is None else f" ({cpu['low']:.4f} .. {cpu['high']:.4f})"
    yield f"{case}: CPU time of this version divided by that of the earlier version {cpu['mean']:.4f}{ends}"
    yield f"seconds {seconds['first']['median']:.4g} and {seconds['this']['median']:.4g}"
    yield f"peak MiB {peaks['first']['median']:.0f} and {peaks['this']['median']:.0f}"


def _start(name: str, tree: Path, folder: Path, case: str, units: int) -> subprocess.Popen[str]:
    line = [sys.executable, str(Path(trainer_segment.__file__)), name, str(folder), case, str(units)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    return subprocess.Popen(line, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)


def _printed(process: subprocess.Popen[str]) -> str:
    """The last line that a segment prints; CalledProcessError if it fails, after its own message."""
    printed, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return printed.strip().rpartition("\n")[2]


def _setting(segments: int) -> dict[str, Any]:
    return {
        "commit": COMMIT,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "threads": setting.THREADS,
        "segments": segments,
        "warm_up_units": trainer_segment.WARM_UP,
        "load_at_start": round(os.getloadavg()[0], 2),
        "networks": {"digits": trainer_segment.DIGITS, "bench": setting.NETWORK},
    }


if __name__ == "__main__":
    main()
