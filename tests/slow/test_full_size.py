"""Networks of the size that the paper used."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DISTILL

ROOT = Path(__file__).resolve().parents[2]
MOST_GIGABYTES = 14.0


@pytest.mark.slow
def test_an_update_of_the_imagenet_network_fits_into_14_gigabytes():
    """Three networks, two AdamW states, a moving average and a gradient are 10.7 GB of numbers in float32."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("full_size_step.py"))]
    section = json.dumps(DISTILL)
    answer = subprocess.run(command, env=environment, input=section, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(answer.stdout)
    wall, cpu = (", ".join(f"{each:.0f}" for each in found[name]) for name in ("seconds", "cpu_seconds"))
    print(f"\nADM, {found['parameters']:,} parameters, batch 1, {found['threads']} thread, checkpointing:")
    print(f"updates of {wall} s ({cpu} s of CPU), peak memory {found['gigabytes']:.1f} GB")
    assert found["parameters"] > 295_000_000
    assert found["gigabytes"] < MOST_GIGABYTES
    for row in found["rows"]:
        assert all(math.isfinite(value) for name, value in row.items() if not name.startswith("matching/gap"))
        assert row["gradient_norm/student"] > 0 and row["gradient_norm/fake"] > 0
