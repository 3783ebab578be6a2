"""Stages against their bare network passes, and other benchmarks, on one thread: python -m bench.parts [PART...].

PART is pairs, distill, shards, calls, compute or feed. Prints every ratio with its range over interleaved repetitions.
Without PART it measures pairs, distill, shards and calls, and writes bench/results/parts-cpu.json. `compute`, an update
with each setting of section `compute`, compiles for minutes.
Exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench import calls_step, distill_step, feed, pair_stage, setting, shard_files

OUTPUT = Path(__file__).parent / "results" / "parts-cpu.json"
CLOCKS = ("cpu", "wall")
REPETITIONS = {"pairs": 7, "distill": 7, "shards": 15, "calls": 7, "compute": 5, "feed": 9}
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "pairs": pair_stage.measure,
    "distill": distill_step.measure,
    "shards": shard_files.measure,
    "calls": calls_step.measure,
    "compute": distill_step.measure_compute,
    "feed": feed.measure,
}
RECORDED = ("pairs", "distill", "shards", "calls")


def main() -> None:
    """The command line: runs the chosen benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: pairs, distill, shards and calls")
    chosen = parser.parse_args().parts or list(RECORDED)
    torch.set_num_threads(setting.THREADS)
    figures: dict[str, Any] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = PARTS[name](Path(folder), repetitions=REPETITIONS[name])
        print("\n".join(_lines(name, figures[name])), flush=True)
    if set(chosen) == set(RECORDED):
        OUTPUT.write_text(json.dumps(_setting() | {"parts": figures}, indent=2, sort_keys=True) + "\n")
        print(f"written to {OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT.name}")
    if any(not figure.get("met", True) for part in figures.values() for figure in part.values() if _is_figure(figure)):
        sys.exit("a target was missed")


def _lines(part: str, figures: dict[str, Any]) -> Iterator[str]:
    for name, figure in figures.items():
        if not _is_figure(figure):
            yield f"{part:8} {name}: {figure}"
            continue
        measured = {clock: figure[clock] for clock in CLOCKS if clock in figure}
        clocks = [f"{clock} {one['median']} ({one['min']} .. {one['max']})" for clock, one in measured.items()]
        verdict = f", target {figure['target']}: {'met' if figure['met'] else 'MISSED'}" if "met" in figure else ""
        yield f"{part:8} {name}: {', '.join(clocks)}{verdict}"


def _is_figure(figure: Any) -> bool:
    return isinstance(figure, dict) and "cpu" in figure


def _setting() -> dict[str, Any]:
    machine = f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}"
    card = "GPU not used" if torch.cuda.is_available() else "no GPU"
    return {
        "machine": f"{machine}, {card}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "threads": setting.THREADS,
        "repetitions": {name: REPETITIONS[name] for name in RECORDED},
        "batch_size": setting.BATCH_SIZE,
        "network": setting.NETWORK,
    }


if __name__ == "__main__":
    main()
