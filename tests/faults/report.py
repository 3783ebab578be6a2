"""The figures of a campaign, from what is known of each of its runs."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.fault import AFTER, BEFORE, BETWEEN, DURING

OUTCOMES = ("survived", "stopped", "lost", "wrong")
BAD = ("lost", "wrong")


def counts(run: dict[str, Any]) -> bool:
    """Whether a run is one of those tried: its fault struck, or it ended badly all the same."""
    return bool(run["struck"] or run["outcome"] in BAD)


def figures(runs: list[dict[str, Any]], kinds: list[str]) -> dict[str, Any]:
    """Outcomes of all runs and by kind, and how many faults came too late."""
    counted = [run for run in runs if counts(run)]
    by_kind = {kind: _counts([run for run in counted if run["kind"] == kind]) for kind in kinds}
    return {"all": _counts(counted), "kinds": by_kind, "missed": len(runs) - len(counted), "runs": runs}


def _counts(runs: list[dict[str, Any]]) -> dict[str, int]:
    outcomes, places = Counter(run["outcome"] for run in runs), Counter(run["when"] for run in runs)
    found = {"tried": len(runs)} | {when: places[when] for when in (BEFORE, DURING, AFTER, BETWEEN)}
    found |= {"ended the run": sum(run["status"] != 0 for run in runs)}
    found |= {"continued": sum(run["continued"] is not None for run in runs)}
    return found | {name: outcomes[name] for name in OUTCOMES}


def write(path: Path, report: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)


def show(report: dict[str, Any]) -> None:
    """Prints a table in Markdown."""
    print(f"\nseed {report['seed']}, {report['machine']}, {report['minutes']} min, {report['missed']} came too late")
    names = list(report["all"])
    print(f"| fault | {' | '.join(names)} |\n|---{'|---:' * len(names)}|")
    for name, row in {**report["kinds"], "all": report["all"]}.items():
        print(f"| {name} | {' | '.join(str(row[each]) for each in names)} |")
