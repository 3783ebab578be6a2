"""Parameters spread over two processes: the same training as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmd.train import sharding
from dmd.train.parallel import BatchSplit
from tests.train import sharded_updates
from tests.trainings import changed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "places",
    [[0], pytest.param([4], marks=pytest.mark.slow), pytest.param([1, 2, 3, 5], marks=pytest.mark.slow)],
    ids=["whole", "several calls", "adapters"],
)
def test_two_processes_with_half_of_the_parameters_each_update_as_one(distill_section, tmp_path, places):
    """Whole networks and adapters, checkpointed or not; states gathered, and spread again before the last update."""
    section = changed(distill_section, student={"gradient_clip": 1e-2})  # clip of the whole norm
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = []
    for rank in range(2):
        command = [sys.executable, sharded_updates.__file__, str(tmp_path), str(rank)]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        workers.append(subprocess.Popen(command, **pipes, text=True, env=environment))
    for worker in workers:
        worker.stdin.write(json.dumps([section, places]))
        worker.stdin.close()
    for worker in workers:
        assert worker.wait(300) == 0, worker.stderr.read()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for case, one, other in zip(sharded_updates.cases(section, places), first, second, strict=True):
        alone = sharded_updates.updated(case, BatchSplit(micro_batch_size=3))
        assert one.keys() == other.keys() == alone.keys()
        whole = int(alone.pop("mine"))
        assert int(one.pop("mine")) + int(other.pop("mine")) == whole
        for name, value in alone.items():
            assert torch.equal(one[name].nan_to_num(), other[name].nan_to_num()), name
            torch.testing.assert_close(one[name], value, rtol=1e-3, atol=2e-5, equal_nan=True, msg=name)


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(ValueError, match="it needs several processes"):
        sharding.shard([torch.nn.Linear(2, 2)])
