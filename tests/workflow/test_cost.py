"""The cost table: jobs of SLURM, disk and hours, before any file is there."""

from pathlib import Path

import pytest
import yaml

from dmd.config import Experiments, load
from tests.workflow.conftest import REPOSITORY, SMALL, write_config
from workflow.scripts import cost, plan
from workflow.scripts.memory import RELEASED, forward_operations
from workflow.scripts.rates import Job

PROFILE = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())


@pytest.fixture(scope="module")
def experiments() -> Experiments:
    return Experiments(load(REPOSITORY / "config.yaml"))


def test_cost_counts_the_jobs_of_a_dry_run(tmp_path: Path, monkeypatch):
    write_config(tmp_path, SMALL)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("config.yaml"))
    small = Experiments(loaded)
    assert cost.needed(small, "small-seed1") == set(plan.planned(loaded, small, "small-seed1")[0])


@pytest.mark.parametrize(
    "name, on_gpus, on_cpus",
    [  # teacher, reference, pairs, distill, samples with features; manifest, fid.json, and images and what text takes
        ("imagenet64", 1 + 1 + 25 + 1 + 30, 2),
        ("imagenet64-teacher", 1 + 1 + 150, 1),
        ("sd15-cfg3", 1 + 1 + 250 + 1 + 15, 2 + 6),
        ("sd15-cfg8", 1 + 1 + 1200 + 1 + 15, 2 + 6),
    ],
)
def test_cost_takes_a_group_for_one_job(experiments: Experiments, name: str, on_gpus: int, on_cpus: int):
    assert cost.submitted(cost.needed(experiments, name), PROFILE) == (on_gpus, on_cpus)


def test_cost_of_the_paper_is_its_arithmetic(experiments: Experiments):
    batch, pairs, calls, updates = 336, 25_000, 511, 350_000
    found = cost.passes(experiments, "imagenet64", cost.needed(experiments, "imagenet64"))
    assert found == (pairs * calls, updates * 11 * batch, 150_000)
    header, _, row = cost.table(experiments, ["imagenet64"], rate=100.0)
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    operations = forward_operations(RELEASED["imagenet64"])
    assert cells["distill"] == f"{found[1] * operations / 1e14 / 3600:.1f}"
    assert cells["GPU hours: pairs"] == f"{found[0] * operations / 1e14 / 3600:.1f}"
    assert operations == pytest.approx(219.3e9, rel=1e-3)  # 206.9 without the products of attention


def test_cost_counts_the_states_of_paths(experiments: Experiments):
    job = Job("pairs", "cifar10-uncond-dfno", (0, 0))
    label, noise, state = 2, 1 + 25, 1 + 13  # blocks of 512 bytes; a state is of half precision
    assert plan.shard_bytes(experiments, job, 3 * 32 * 32, 0) == 2000 * 512 * (label + noise + state + 1 + 49)


def test_cost_counts_guided_calls_twice(experiments: Experiments):
    pairs, distilled, samples = cost.passes(experiments, "sd15-cfg3", cost.needed(experiments, "sd15-cfg3"))
    assert (pairs, samples) == (2 * 500_000 * 51, 30_000)
    # generator and fake update 3 each, the guided real score 2, the fake score 1; pairs join all but the first
    assert distilled == 20_000 * ((3 + 3 + 3) * 2304 + (3 + 3) * 1152 + 3 * 1152)


def test_cost_of_a_network_that_nothing_knows_yet_is_refused(tmp_path: Path, monkeypatch):
    other = {**SMALL["experiments"]["small"], "teacher": {"kind": "edm", "file": "teacher.pkl"}}
    rows = {"rows": [{"label": "other", "experiments": ["other"]}]}
    write_config(tmp_path, {"experiments": {"other": other}, "tables": {"demo": rows, "table2": rows}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="other: the network is unknown, since the teacher's file does not exist"):
        list(cost.table(Experiments(load(Path("config.yaml"))), ["other"], rate=1.0))
