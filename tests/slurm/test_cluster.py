"""A machine that belongs to a cluster."""

from pathlib import Path

import pytest

from tests.slurm import cluster


@pytest.mark.parametrize("name", ["slurm.conf", "gres.conf"])
def test_a_cluster_of_others_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(cluster, "PLACE", tmp_path)
    (tmp_path / name).write_text("ClusterName=ours\n")
    with pytest.raises(SystemExit, match=f"{name} exists: this machine belongs to a cluster"), cluster.running():
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name] and (
        tmp_path / name
    ).read_text() == "ClusterName=ours\n"
