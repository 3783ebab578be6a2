"""Measures twelve million pairs and thousands of jobs: `python -m bench.scale [rows|jobs]`.

Without an argument it writes bench/results/scale.json. Exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import scale_jobs, scale_rows

RESULTS = Path(__file__).parent / "results" / "scale.json"


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("rows", "jobs"), help="measure only this part, and only print it")
    parser.add_argument("--rows", type=int, default=scale_rows.NUM_ROWS)
    parser.add_argument("--seconds", type=float, default=scale_jobs.SECONDS, help="duration of a near-empty job")
    parsed = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        if parsed.part != "jobs":
            figures["rows"] = scale_rows.measure(Path(folder, "rows"), parsed.rows)
        if parsed.part != "rows":
            Path(folder, "jobs").mkdir()
            figures["jobs"] = scale_jobs.measure(Path(folder, "jobs"), seconds=parsed.seconds)
    figures["load_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps(figures, indent=1) + "\n"
    print(text, end="")
    if parsed.part is None:
        RESULTS.write_text(text)
    parts = {part: figures[part]["targets"] for part in ("rows", "jobs") if part in figures}
    end({f"{part}.{name}": target for part, targets in parts.items() for name, target in targets.items()})


def end(targets: dict[str, dict[str, Any]]) -> None:
    """Exits 1 with the names of missed targets, if there are any."""
    if missed := [f"{name} {target['target']}" for name, target in targets.items() if not target["met"]]:
        sys.exit(f"missed: {', '.join(missed)}")


def machine() -> str:
    """Architecture and number of cores of the machine; the benchmarks that call this use no GPU."""
    return f"{platform.machine()}, {os.cpu_count()} cores, no GPU"


if __name__ == "__main__":
    main()
