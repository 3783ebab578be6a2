"""Sums over processes: gradients in buckets, and a whole update of two processes against one."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmd.methods import share
from tests.methods import shared_updates
from tests.methods.shared_updates import updated

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shared_noise", [False, True])
def test_two_processes_of_unequal_parts_update_as_one(distill_numbers, tmp_path, shared_noise):
    optimiser = distill_numbers["optimiser"] | {"gradient_clip": 1e-2}  # of the norm over all
    numbers = copy.deepcopy(distill_numbers) | {"optimiser": optimiser, "shared_noise": shared_noise}
    command = [sys.executable, shared_updates.__file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [*command, str(rank)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(numbers))
        worker.stdin.close()
    for worker in workers:
        assert worker.wait(120) == 0, worker.stderr and worker.stderr.read()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = updated(numbers, share.Share())
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(first, second, strict=True))
    torch.testing.assert_close(first[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1], alone[1], rtol=1e-3, atol=1e-5, equal_nan=True)
