"""Parts of a batch; sums over processes: gradients in buckets, and whole updates of two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmd.train.parallel import BatchSplit
from tests.train import parallel_updates
from tests.train.parallel_updates import updated
from tests.trainings import changed

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_of_unequal_parts_update_as_one(distill_section, tmp_path):
    """In micro-batches; the clip and the log see the whole batch; rows that go on keep their cut."""
    kinds = ({}, {"shared_noise": True}, {"match_pairs": True})
    clipped = {"gradient_clip": 1e-2}  # of the norm over all
    sections = [changed(distill_section, student=clipped, **keys) for keys in kinds]
    command = [sys.executable, parallel_updates.__file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [*command, str(rank)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(sections))
        worker.stdin.close()
    for worker in workers:
        assert worker.wait(120) == 0, worker.stderr and worker.stderr.read()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for section, first, second in zip(sections, *results, strict=True):
        alone = updated(section, BatchSplit())
        assert torch.equal(first[0], second[0])
        assert repr(first[1]) == repr(second[1])  # nan equals nan
        torch.testing.assert_close(first[0], alone[0], rtol=1e-4, atol=1e-5)
        assert first[1] == pytest.approx(alone[1], rel=1e-3, abs=1e-5, nan_ok=True)


def test_parts_of_all_processes_make_the_batch():
    for num, processes, size in ((7, 3, 2), (6, 2, None), (5, 5, 9)):
        splits = [BatchSplit(rank, processes, size) for rank in range(processes)]
        found = [split.slices(num) for split in splits]
        assert [place for slices in found for part in slices for place in range(num)[part]] == list(range(num))
        sizes = [part.stop - part.start for slices in found for part in slices]
        assert all(each <= (size or num) for each in sizes) and {split.largest(num) for split in splits} == {max(sizes)}
    found = [BatchSplit(rank, 2, 2).slices(6) for rank in range(2)]
    assert found == [[slice(0, 2), slice(2, 3)], [slice(3, 5), slice(5, 6)]]
    with pytest.raises(ValueError, match="2 images cannot be shared among 3 processes"):
        BatchSplit(0, 3).slices(2)
