"""An experiment scored with Inception features against published moments, through Snakemake."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmd.provenance import files
from tests.workflow.conftest import edited, make, write_config
from tests.workflow.photos import write_photos

pytestmark = pytest.mark.slow

EDITS: dict[str, Any] = {
    "experiments/small/reference/features": {"kind": "inception", "file": "inputs/inception.pth"},
    "experiments/small/reference/moments": {"file": "inputs/moments.npz"},
    "experiments/small/evaluate": {"inception_score": {"splits": 2}},
    "tables/demo": {
        "paper": "table1",
        "rows": [{"label": "ours", "experiments": ["small"], "published": {"label": "DMD"}, "run": False}],
    },
}
TARGETS = ("results/small/fid.json", "results/small/inception_score.json")


def test_inception_scores_of_a_whole_run(tmp_path: Path, inception_file: Path):
    write_config(tmp_path, edited(EDITS))
    write_photos(tmp_path / "photos")
    (tmp_path / "inputs").mkdir()
    shutil.copy(inception_file, tmp_path / "inputs" / "inception.pth")
    factor = np.random.default_rng(0).standard_normal((2048, 30)) / 5
    np.savez(tmp_path / "inputs" / "moments.npz", mu=np.full(2048, 5.0), sigma=factor @ factor.T)
    make(tmp_path, "--cores", "2", *TARGETS)
    make(tmp_path, "--cores", "1", "results/tables/demo.md")
    fid, score = (json.loads((tmp_path / target).read_text()) for target in TARGETS)
    assert fid["metric"] == "fd-inception" and fid["value"] > fid["floor"]["mean"] > 0
    assert fid["floor"]["kind"] == "gaussian" and fid["num_samples"] == 32 and "training" not in fid
    assert fid["features"]["sha256"] == files.sha256(inception_file)
    assert score["metric"] == "is-inception" and 1 <= score["value"] <= 16
    kid = json.loads((tmp_path / "results" / "small" / "kid.json").read_text())
    assert kid["value"] is None and "moments only" in kid["reason"]
    rows = (tmp_path / "results" / "tables" / "demo.md").read_text().splitlines()
    assert sum("(fd-inception)" in row and row.startswith("| DMD | ImageNet-64 | 2.62 |") for row in rows) == 1
