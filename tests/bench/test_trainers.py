"""The comparison of trainers: both versions run, and the interval is that of Student's t."""

import json
import math
import subprocess
import sys

import pytest

from bench import trainers
from bench.earlier_version.tree import ROOT


def test_ratio_is_the_geometric_mean_of_pairs_and_its_interval_covers_it():
    found = trainers.ratio([2.0, 8.0, 4.0], [1.0, 2.0, 1.0])
    mean, half = math.log(32) / 3, 4.302653 * math.log(2) / math.sqrt(3) / math.sqrt(3)
    assert found.mean == pytest.approx(math.exp(mean))
    assert (found.low, found.high) == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-6)
    assert trainers.ratio([3.0], [2.0]) == trainers.Ratio(pytest.approx(1.5), None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "flags"), [("digits plain", ["--together"]), ("digits shared_noise", []), ("bench pairs", [])]
)
def test_both_houses_are_measured(tmp_path, case, flags):
    output = tmp_path / "found.json"
    output.write_text('{"cases": {"another": 1}}')
    line = [sys.executable, "-m", "bench.trainers", case, "--segments", "2", "--units", "1", *flags]
    subprocess.run([*line, "--output", str(output)], cwd=ROOT, check=True)
    cases = json.loads(output.read_text())["cases"]
    assert cases.keys() == {"another", case}  # the figures of others are kept
    found = cases[case]
    assert found["pairs_of_segments"] == 2 and found["cpu_ratio"]["low"] < found["cpu_ratio"]["high"]
    assert all(found["peak_rss_mib"][name]["min"] > 100 for name in trainers.TREES)
