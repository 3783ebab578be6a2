"""Updates and pairs of this tree against those of commit 29f82d6, the first house: python -m bench.trainers.

Segments of the two alternate, each a process of its own on one thread; the ratio is that of two neighbouring segments.
Writes bench/results/trainers.json: seconds of CPU of an update, or of a shard of 64 pairs, of both; the ratio of this
tree to the first house, geometric mean with the 95 % interval of Student's t; peak memory of both.
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
from bench.first_house.house import ROOT, checked_out

OUTPUT = Path(__file__).parent / "results" / "trainers.json"
COMMIT = "29f82d6"
TREES = ("first", "this")
CASES = {  # network and kind -> units of a segment: updates, or shards of pairs
    "digits plain": 40,
    "digits shared_noise": 40,
    "bench plain": 8,
    "bench shared_noise": 8,
    "bench pairs": 3,
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Segment:
    """What one process measured: seconds of a unit, and its peak memory."""

    cpu: float
    wall: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of ratios, and the ends of its interval; None where one pair of segments has none."""

    mean: float
    low: float | None
    high: float | None


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(map(repr, CASES))}; all of them if none")
    parser.add_argument("--segments", type=int, default=12, help="of each tree and case (%(default)s)")
    parser.add_argument("--units", type=int, help="updates or shards of a segment, where not as many as usual")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (%(default)s)")
    parsed = parser.parse_args()
    if unknown := [name for name in parsed.cases if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; cases are {', '.join(map(repr, CASES))}")
    if parsed.segments < 1 or (parsed.units is not None and parsed.units < 1):
        parser.error("--segments and --units are 1 or more")
    figures: dict[str, Any] = {"setting": _setting(parsed.segments), "cases": {}}
    with checked_out(COMMIT) as first, tempfile.TemporaryDirectory() as folder:
        trees = dict(zip(TREES, (first, ROOT), strict=True))
        for name in parsed.cases or CASES:
            units = parsed.units or CASES[name]
            found = measured(trees, Path(folder), name, segments=parsed.segments, units=units)
            figures["cases"][name] = as_json(found, units)
            print(as_text(name, figures["cases"][name]), flush=True)
            parsed.output.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def measured(trees: dict[str, Path], folder: Path, case: str, *, segments: int, units: int) -> dict[str, list[Segment]]:
    """Segments of each tree, in turn; their inputs are made before."""
    found: dict[str, list[Segment]] = {name: [] for name in trees}
    for name, tree in trees.items():
        _run(name, tree, folder, case, 0)
    for _ in range(segments):
        for name, tree in trees.items():
            found[name].append(Segment(**json.loads(_run(name, tree, folder, case, units))))
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """above / below of each pair."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    mean, num = statistics.mean(logs), len(logs)
    if num == 1:
        return Ratio(math.exp(mean), None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * statistics.stdev(logs) / math.sqrt(num)
    return Ratio(*(math.exp(value) for value in (mean, mean - half, mean + half)))


def as_json(found: dict[str, list[Segment]], units: int) -> dict[str, Any]:
    """Figures of a case."""
    first, this = (found[name] for name in TREES)
    figures: dict[str, Any] = {"units_of_a_segment": units}
    for kind in ("cpu", "wall"):
        values = {name: [getattr(one, kind) for one in segments] for name, segments in found.items()}
        figures[f"{kind}_seconds"] = {name: clock.spread(each) for name, each in values.items()}
        figures[f"{kind}_ratio"] = dataclasses.asdict(ratio(values["this"], values["first"]))
    peaks = {name: clock.spread([one.peak_rss_mib for one in segments]) for name, segments in found.items()}
    return figures | {"peak_rss_mib": peaks, "pairs_of_segments": min(len(first), len(this))}


def as_text(case: str, figures: dict[str, Any]) -> str:
    """One line."""
    return "; ".join(_words(case, figures))


def _words(case: str, figures: dict[str, Any]) -> Iterator[str]:
    seconds, peaks = figures["cpu_seconds"], figures["peak_rss_mib"]
    found = figures["cpu_ratio"]
    ends = "" if found["low"] is None else f" ({found['low']:.4f} .. {found['high']:.4f})"
    yield f"{case}: CPU time of this tree over that of the first house {found['mean']:.4f}{ends}"
    yield f"seconds {seconds['first']['median']:.4g} and {seconds['this']['median']:.4g}"
    yield f"peak MiB {peaks['first']['median']:.0f} and {peaks['this']['median']:.0f}"


def _run(name: str, tree: Path, folder: Path, case: str, units: int) -> str:
    """What a segment printed last; CalledProcessError with its complaint above if it fails."""
    line = [sys.executable, str(Path(trainer_segment.__file__)), name, str(folder), case, str(units)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run(line, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


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
