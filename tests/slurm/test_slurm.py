"""The workflow on a real SLURM: cancelled jobs, a drained node, a time limit, several nodes, and the same bytes.

`make test-slurm` runs it, as root.
"""

import copy
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dmd.artifacts import tensors
from tests.slurm.cluster import install, running
from tests.workflow.conftest import ENVIRONMENT, REPOSITORY, SNAKEMAKE, digests, make, write_config

pytestmark = pytest.mark.slurm
PATIENCE = 600.0  # seconds, on a busy machine
FID = "results/digits/fid.json"
GENERATOR = "results/digits/distill/generator.safetensors"
NEAR = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "15"]  # a cluster that answers at once
DIGITS: dict[str, Any] = {
    "device": "cpu",
    "dataset": {"kind": "digits"},
    "teacher": {
        "kind": "train",
        "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
        "training": {"updates": 40, "batch_size": 16, "learning_rate": 0.004, "ema_decay": 0.8},
    },
    "reference": {"features": {"kind": "pixels", "size": 2}, "protocol": {"quantise": 17}, "floor_draws": 2},
    "pairs": {
        "num_pairs": 128,
        "shard_size": 32,
        "shards_per_job": 2,
        "batch_size": 32,
        "solver": {"name": "heun", "steps": 18},
    },
    "distill": {
        "matching_batch_size": 8,
        "regression_batch_size": 8,
        "optimiser": {"learning_rate": 0.001, "warmup": 2, "decay": "cosine"},
        "phases": [{"updates": 20, "matching_scale": 0.0, "fake_updates": 0}, {"updates": 100, "fake_updates": 2}],
        "checkpoint_every": 1000,
        "grid_every": 10,
    },
    "sample": {"num_samples": 64, "shard_size": 16, "shards_per_job": 2, "batch_size": 32},
    "evaluate": {"neighbours": 3},
}


class Job(NamedTuple):
    """What squeue says of one job; `comment` names the rule, `memory` is in MB."""

    number: str
    state: str
    comment: str
    memory: int
    nodes: int


def config(**changed: Any) -> dict[str, Any]:
    """The configuration, with other values at `section__key` of the experiment."""
    experiment = copy.deepcopy(DIGITS)
    for place, value in changed.items():
        section, _, key = place.partition("__")
        experiment.setdefault(section, {})[key] = value
    row = {"rows": [{"label": "digits", "experiments": ["digits"]}]}
    return {"experiments": {"digits": experiment}, "tables": {"demo": row, "table2": {"rows": []}} | {"table2": row}}


def submitted(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Snakemake with the profile as users name it; what it says goes to snakemake.out."""
    line = [str(SNAKEMAKE), "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder)]
    line += ["--workflow-profile", "slurm", *words, *NEAR]
    with open(folder / "snakemake.out", "w") as output:
        return subprocess.Popen(line, stdout=output, stderr=output, env=ENVIRONMENT, cwd=REPOSITORY, text=True)


def ends(process: subprocess.Popen[str], folder: Path) -> str:
    """What a run said that ended well."""
    status = process.wait(timeout=PATIENCE)
    said = (folder / "snakemake.out").read_text()
    assert status == 0, said[-5000:]
    return said


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True)


def jobs(rule: str) -> list[Job]:
    """Jobs of a rule that the controller remembers, oldest first."""
    line = ["squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%T|%k|%m|%D"]
    rows = [row.split("|") for row in subprocess.run(line, capture_output=True, text=True).stdout.split()]
    found = [Job(row[0], row[1], row[2], int(row[3].rstrip("M").replace("G", "000")), int(row[4])) for row in rows]
    return [job for job in found if job.comment.startswith(f"rule_{rule}_wildcards")]


def when(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for a moment that comes before the process ends."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "the moment never came"
        time.sleep(0.05)


def cancel(rule: str) -> Job:
    """Cancels the job of a rule that runs; there is one."""
    job = next(job for job in jobs(rule) if job.state == "RUNNING")
    subprocess.run(["scancel", job.number], check=True)
    return job


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Path]:
    """The cluster of this module; its own jobs are gone when it stops."""
    install()
    with running() as folder:
        yield folder
        subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain as one machine makes it."""
    folder = tmp_path_factory.mktemp("local")
    write_config(folder, config())
    make(folder, "--cores", "2", FID)
    return folder


def test_a_chain_with_cancelled_jobs_and_a_drained_node_ends_as_a_local_run(local: Path, tmp_path: Path):
    write_config(tmp_path, config())
    snakemake = submitted(tmp_path, FID)
    when(lambda: any(tmp_path.glob("results/digits/pairs/*.tar")), snakemake)
    cancelled = [cancel("pairs")]
    scontrol("update", "nodename=n2", "state=drain", "reason=test")
    when(lambda: any(tmp_path.glob("results/digits/distill/grids/*.png")), snakemake)
    scontrol("update", "nodename=n2", "state=resume")
    cancelled.append(cancel("distill"))
    said = ends(snakemake, tmp_path)
    for rule, job in zip(("pairs", "distill"), cancelled, strict=True):
        again = [each for each in jobs(rule) if int(each.number) > int(job.number)]
        assert again and again[-1].memory == 2 * job.memory and again[-1].state == "COMPLETED", jobs(rule)
    assert "continuing at update" in (tmp_path / "results/digits/logs/distill.log").read_text()
    # reference, teacher, two of pairs, manifest, distill, two of samples with features, evaluate; and two again
    assert said.count("has been submitted with SLURM jobid") == 11
    assert digests(tmp_path) == digests(local)


def test_distill_on_two_nodes_trains_as_on_one(local: Path, tmp_path: Path):
    """Two processes on one node, then one on each of two; gradients are summed in another order than by one process."""
    found = []
    for nodes in (1, 2):
        folder = tmp_path / str(nodes)
        subprocess.run(["cp", "-a", str(local), str(folder)], check=True)
        write_config(folder, config(distill__processes=2, resources__distill={"nodes": nodes}))
        ends(submitted(folder, GENERATOR), folder)
        assert jobs("distill")[-1].nodes == nodes
        found.append(tensors.load(folder / GENERATOR)[0])
    alone = tensors.load(local / GENERATOR)[0]
    begun = tensors.load(local / "results/digits/teacher/denoiser.safetensors")[0]
    for name, value in alone.items():
        assert found[0][name].equal(found[1][name])
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=2e-4)
    assert max((value - begun[name.replace("raw.", "ema.")]).abs().max() for name, value in alone.items()) > 1e-2


def test_distill_that_hits_its_time_limit_is_requeued_and_ends_in_the_same_bytes(local: Path, tmp_path: Path):
    """SLURM warns within a minute before the moment asked for; the training is longer than its limit."""
    log = (local / "results/digits/logs/distill.log").read_text()
    rate = float(re.findall(r"([\d.]+) updates/s", log)[-1])
    phases = [{"updates": round(150 * rate), "fake_updates": 2}]
    for name in ("local", "slurm"):
        subprocess.run(["cp", "-a", str(local), str(tmp_path / name)], check=True)
        write_config(tmp_path / name, config(distill__phases=phases))
    make(tmp_path / "local", "--cores", "1", GENERATOR)
    num = len(jobs("distill"))
    limit = ["--set-resources", "distill:runtime=2"]
    limit += ["distill:slurm_extra='--signal=USR1@30 --open-mode=append'", "--retries", "0"]
    ends(submitted(tmp_path / "slurm", GENERATOR, *limit), tmp_path / "slurm")
    assert len(jobs("distill")) == num + 1  # the same job, again and again
    assert "continuing at update" in (tmp_path / "slurm/results/digits/logs/distill.log").read_text()
    assert digests(tmp_path / "slurm") == digests(tmp_path / "local")


@pytest.mark.parametrize("name", ["slurm.conf", "gres.conf"])
def test_a_cluster_that_is_there_is_left_alone(name: str, cluster: Path):
    before = Path(f"/etc/slurm/{name}").read_bytes()
    with pytest.raises(SystemExit, match="another run of this test has its cluster up"), running():
        pass
    assert Path(f"/etc/slurm/{name}").read_bytes() == before and os.path.exists(cluster)
