"""Samples of text from a tiny teacher to FID, CLIP score, latency and table, for real."""

import json
from pathlib import Path

import pytest

from tests.workflow.conftest import jobs, make
from tests.workflow.test_text_scores import TARGETS, make_text_run

pytestmark = pytest.mark.slow


def test_text_goes_through_to_every_score(tmp_path: Path):
    folder = make_text_run(tmp_path)
    make(folder, "--cores", "2", *TARGETS)
    make(folder, "--cores", "2", "results/tables/demo.md")  # shows the latency that is there when it is planned
    fid, clip, latency = (json.loads((folder / target).read_text()) for target in TARGETS)
    assert fid["metric"] == "fd-pixels2" and fid["reference"]["name"] == "images" and fid["network_calls"] == 2
    assert fid["protocol"]["resize"] == {"size": 16, "filter": "lanczos"}
    assert clip["metric"] == "clip-clip" and -1 < clip["value"] < 1 and clip["num_samples"] == 8
    assert set(latency["batches"][0]["shares"]) == {"text_encoder", "denoiser", "decoder"}
    row = (folder / "results/tables/demo.csv").read_text().splitlines()
    assert str(clip["value"]) in row[1] and str(latency["value"]) in row[1]
    assert jobs(make(folder, "--dry-run", *TARGETS)) == {}
