"""Score files: fid.json, classes.json, latency.json, ..."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmd.provenance import outside_files, record


def by_experiment(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Score files by their field `experiment`; ValueError names a file that is not a score or a duplicate."""
    scores: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys(paths):
        with outside_files.reading(path, "a score file", advice=": run `make verify`"):
            score = json.loads(path.read_text(encoding="utf-8"))
            name = score["experiment"]
            if not isinstance(name, str):
                raise ValueError(f"experiment {name!r:.50} is no name")
        if name in scores:
            raise ValueError(f"{path}: there is another score of experiment {name!r}")
        scores[name] = score
    return scores


def write(path: Path, score: dict[str, Any], inputs: record.Inputs) -> None:
    """Writes one score file; its field `stage` names the stage."""
    with record.publish(path, stage=score["stage"], inputs=inputs) as temporary:
        temporary.write_text(json.dumps(score, sort_keys=True, indent=1, allow_nan=False) + "\n")
