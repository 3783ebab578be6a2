"""Processes of one stage: which of them holds the lock of the artifact."""

import os

import pytest

from dmd.config.pipeline_sections import LatentDenoiser
from dmd.config.training import Distill
from dmd.jobs import processes
from dmd.provenance import record
from tests.conftest import DISTILL


def test_first_of_several_processes_does_not_wait_while_the_others_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DMD_TORCHRUN", str(os.getppid()))
    processes.launched.cache_clear()
    monkeypatch.setattr(processes, "launched", processes.launched.__wrapped__)
    with record.exclusive(tmp_path / "artifact"):
        monkeypatch.setenv("RANK", "1")
        with processes.lock(tmp_path / "artifact"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ValueError, match="another process is writing"), processes.lock(tmp_path / "artifact"):
            pass
    with processes.lock(tmp_path / "artifact"):
        assert [path.name for path in tmp_path.iterdir()] == [".artifact.lock"]


def test_processes_of_a_training_are_found_at_any_depth_of_a_spec(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    method = {"name": "denoising", "levels": "table", "batch_size": 4, "phases": [{"updates": 1}]}
    section = {"widths": [32], "attention": [True], "training": {"method": method, "processes": 2}}
    assert processes.wanted({"section": LatentDenoiser.model_validate(section), "device": "cpu"}) == (2, 1)
    assert processes.wanted({"distill": Distill.model_validate(DISTILL | {"processes": 3})}) == (3, 1)
    assert processes.wanted({"distill": Distill.model_validate(DISTILL), "device": "cpu"}) == (1, 1)
