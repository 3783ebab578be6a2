"""Compares the earlier version and this tree, stage by stage: `python -m bench.earlier_version [--quick] [CASE ...]`.

The earlier version is commit 29f82d6. It makes each case once per machine; each stage of this tree then runs on the
artifacts of the earlier version. Exits 1 if a tensor, log column, score or fact differs by more than 1e-6, relative to
its largest value, if a name is on one side only (except log columns without values), or if a stage fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.earlier_version.cases import CASES, Case
from bench.earlier_version.comparison import Comparison
from bench.earlier_version.stages import StageReport, from_equal_inputs, from_own_inputs, make_whole
from bench.earlier_version.tree import ROOT, Failed, Tree, checked_out, git

COMMIT = "29f82d6"
HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "earlier-version"


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer updates, pairs and samples")
    parser.add_argument("--own-inputs", action="store_true", help="stages of this tree read artifacts of this tree")
    parser.add_argument("--cores", type=int, default=2, help="jobs at a time")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parsed = parser.parse_args()
    if unknown := [name for name in parsed.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; cases are {', '.join(CASES)}")
    run = from_own_inputs if parsed.own_inputs else from_equal_inputs
    options = {"quick": parsed.quick, "cores": parsed.cores}
    reports: list[StageReport] = []
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name in parsed.cases or CASES:
                made = earlier_version(CASES[name], **options)
                for report in run(CASES[name], made, Tree(ROOT, HERE / "new"), Path(scratch, name), **options):
                    reports.append(report)
                    print(as_text(report), flush=True)
    except (Failed, ValueError) as error:
        sys.exit(f"error: {error}")
    if parsed.json:
        parsed.json.write_text(json.dumps([as_json(report) for report in reports], indent=1) + "\n")
    end(reports, time.monotonic() - begin)


def earlier_version(case: Case, *, quick: bool, cores: int) -> Path:
    """The folder with all artifacts of a case by the earlier version, of a former run on this machine if possible."""
    configs = HERE / "old"
    config = Tree(ROOT, configs).config(case.name, quick=quick)
    key = [git("rev-parse", COMMIT), config, (HERE / "cases.py").read_text(), torch.__version__, platform.node()]
    folder = CACHE / f"{case.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with checked_out(COMMIT) as tree:
            make_whole(case, Tree(tree, configs), folder, inputs_from=tree, quick=quick, cores=cores)
        whole.touch()
    return folder


def end(reports: list[StageReport], seconds: float) -> None:
    """Exits 1 with the names of stages that differ, if there are any."""
    print(f"{len(reports)} stages in {seconds:.0f} s")
    if wrong := [f"{report.case}.{report.stage}" for report in reports if not report.agrees]:
        sys.exit(f"differs from the earlier version: {', '.join(wrong)}")
    print("equal to the earlier version")


def as_text(report: StageReport) -> str:
    """A line for the stage, one per kind of content of each artifact, and the failure if there is one."""
    verdict = "equal" if report.agrees else "DIFFERS"
    lines = [f"{report.case}.{report.stage}: {verdict} (ran {', '.join(report.rules) or 'nothing'})"]
    for part in report.comparisons:
        far = f", by at most {part.absolute:.3g}, relative {part.relative:.3g}" if part.num_equal < part.num else ""
        lines.append(f"  {part.artifact}: {part.num_equal} of {part.num} {part.kind} equal bit by bit{far}")
        lines += [f"    largest difference: {part.worst}"] if part.worst else []
        for names, where in ((part.only_old, "in the earlier version only"), (part.only_new, "in this tree only")):
            lines += [f"    {where}: {', '.join(names)}"] if names else []
        lines += [f"    not compared, as RENAMES says: {', '.join(part.declared)}"] if part.declared else []
    lines += [f"  {line}" for line in report.failure.splitlines()]
    return "\n".join(lines)


def as_json(report: StageReport) -> dict[str, Any]:
    """The report for --json; differences of values that cannot be subtracted are null."""
    return {**dataclasses.asdict(report), "agrees": report.agrees, "comparisons": list(map(_row, report.comparisons))}


def _row(comparison: Comparison) -> dict[str, Any]:
    differences = {
        name: value if math.isfinite(value := getattr(comparison, name)) else None for name in ("absolute", "relative")
    }
    return {**dataclasses.asdict(comparison), **differences, "agrees": comparison.agrees}


if __name__ == "__main__":
    main()
