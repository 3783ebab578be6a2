"""Processes of one stage: which of them holds the lock of the artifact."""

import os

import pytest

from dmd.jobs import processes
from dmd.provenance import record


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
