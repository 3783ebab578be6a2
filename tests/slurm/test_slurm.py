"""The workflow on a real SLURM: cancelled jobs, a drained node, time limits, several nodes, and the same bytes.

`make test-slurm` runs it, as root, on a machine without a GPU: its jobs ask for pretended ones, and draw on the CPU.
"""

import contextlib
import copy
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.slurm.cluster import install, running
from tests.workflow.conftest import ENVIRONMENT, REPOSITORY, SNAKEMAKE, digests, make, write_config

pytestmark = pytest.mark.slurm
PATIENCE = 600.0  # seconds, on a busy machine
FID = "results/digits/fid.json"
GENERATOR = "results/digits/distill/generator.safetensors"
LOG = "results/digits/distill/log.parquet"
NEAR = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "15"]  # a cluster that answers at once
DIGITS: dict[str, Any] = {
    "device": "auto",
    "dataset": {"kind": "digits"},
    "teacher": {
        "kind": "train",
        "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
        "training": {
            "method": {"name": "denoising", "batch_size": 16, "phases": [{"updates": 40}]},
            "optimisers": {"student": {"learning_rate": 0.004, "weight_decay": 0.0, "gradient_clip": 1.0}},
            "schedule": {"warmup": 0},
            "ema_decay": 0.8,
        },
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
        "method": {
            "name": "dmd",
            "matching_batch_size": 8,
            "regression_batch_size": 8,
            "phases": [{"updates": 20, "matching_scale": 0.0, "fake_updates": 0}, {"updates": 240, "fake_updates": 2}],
        },
        "optimisers": {"student": {"learning_rate": 0.001}},
        "schedule": {"warmup": 2, "decay": "cosine"},
        "checkpoint_every": 1000,
        "grid_every": 10,
    },
    "sample": {"num_samples": 64, "shard_size": 16, "shards_per_job": 2, "batch_size": 32},
    "evaluate": {"neighbours": 3},
}


class Job(NamedTuple):
    """What squeue says of one job; `comment` names the rule, `memory` is in MB, `where` are its nodes."""

    number: int
    state: str
    comment: str
    memory: int
    limit: str
    where: str


def config(**changed: Any) -> dict[str, Any]:
    """The configuration, with other values at `section__key` of the experiment."""
    experiment = copy.deepcopy(DIGITS)
    for place, value in changed.items():
        section, _, key = place.partition("__")
        experiment.setdefault(section, {})[key] = value
    row = {"rows": [{"label": "digits", "experiments": ["digits"]}]}
    return {"experiments": {"digits": experiment}, "tables": {"demo": row, "table2": {"rows": []}} | {"table2": row}}


def command(folder: Path, *words: str, profile: str = "slurm") -> list[str]:
    """Snakemake with a profile: the one of the repository by its name, as users say it."""
    line = [str(SNAKEMAKE), "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder)]
    return [*line, "--workflow-profile", profile, *words]


def submitted(folder: Path, *words: str, **asked: Any) -> subprocess.Popen[str]:
    """Snakemake with the profile, or a copy that asks for other resources of distill; it says to snakemake.out."""
    profile = "slurm"
    if asked:
        whole = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
        whole["set-resources"]["distill"] |= asked
        (folder / "profile").mkdir()
        (folder / "profile/config.yaml").write_text(yaml.safe_dump(whole))
        profile = str(folder / "profile")
    line = command(folder, *words, *NEAR, profile=profile)
    with open(folder / "snakemake.out", "w") as output:
        return subprocess.Popen(line, stdout=output, stderr=output, env=ENVIRONMENT, cwd=REPOSITORY, text=True)


def ends(process: subprocess.Popen[str], folder: Path) -> str:
    """What a run said that ended well."""
    status = process.wait(timeout=PATIENCE)
    said = (folder / "snakemake.out").read_text()
    assert status == 0, said[-5000:]
    return said


def scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


def jobs(rule: str = "", *, after: int = 0) -> list[Job]:
    """Jobs of a rule, or of all, that the controller remembers and that were submitted after one, oldest first."""
    named = f"rule_{rule}_wildcards" if rule else ""
    line = ["squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%T|%k|%m|%l|%N"]
    rows = [row.split("|") for row in subprocess.run(line, capture_output=True, text=True).stdout.split()]
    found = [
        Job(int(number), state, comment, int(memory.rstrip("M").replace("G", "000")), limit, where)
        for number, state, comment, memory, limit, where in rows
    ]
    return [job for job in found if job.number > after and job.comment.startswith(named)]


def last() -> int:
    """Number of the newest job, 0 where there is none."""
    return max((job.number for job in jobs()), default=0)


def state(number: int) -> str:
    return next(job.state for job in jobs() if job.number == number)


def asked_and_granted(number: int) -> tuple[str, str]:
    """GPUs that a running job asked for, as a whole or on each node, and those that it was given."""
    facts = dict(each.split("=", 1) for each in scontrol("show", "job", "-d", str(number)).split() if "=" in each)
    asked = facts.get("TresPerJob") or f"{facts['TresPerNode']} on each node"
    return asked, facts["JOB_GRES"]


def when(reached: Callable[[], bool], process: subprocess.Popen[str] | None = None, *, every: float = 0.2) -> None:
    """Waits for a moment, which comes before the process ends, and looks for it every so many seconds."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert (process is None or process.poll() is None) and time.monotonic() < deadline, "the moment never came"
        time.sleep(every)


def runs(rule: str, after: int) -> Job | None:
    """The job of a rule that runs, of those submitted after one."""
    return next((job for job in jobs(rule, after=after) if job.state == "RUNNING"), None)


def cancel(rule: str, after: int) -> Job:
    """Cancels the job of a rule that runs; there is one."""
    job = runs(rule, after)
    assert job is not None, jobs(after=after)
    subprocess.run(["scancel", str(job.number)], check=True)
    return job


def watched(folder: Path) -> dict[str, dict[str, Any]]:
    """What `python -m dmd.status` says of each stage."""
    line = [sys.executable, "-m", "dmd.status", "--json", "digits"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment, check=True)
    return {stage["stage"]: stage for stage in map(json.loads, answer.stdout.splitlines())}


def trains(folder: Path) -> bool:
    """Whether dmd.status shows distill at work, with its rate."""
    distill = watched(folder)["distill"]
    return distill["state"] == "running" and bool(distill["per_second"])


def has_trained(folder: Path) -> bool:
    """Whether distill has made updates and drawn a first grid."""
    return any(folder.glob("results/digits/distill/grids/*.png"))


def meets_its_limit(number: int, folder: Path) -> None:
    """Brings the time limit of a job near, until SLURM warns, which looks every half minute, and requeues the job.

    The stage stands still meanwhile, so that no machine is fast enough to end before. Afterwards there is time again.
    """
    held = [process for process in psutil.process_iter(["cmdline", "cwd"]) if _is_stage(process.info, folder)]
    assert held, "no process of the stage was found"
    for process in held:
        process.suspend()
    hours, minutes = map(int, re.findall(r" RunTime=(\d+):(\d+):", scontrol("show", "job", str(number)))[0])
    scontrol("update", f"jobid={number}", f"timelimit={60 * hours + minutes + 5}")  # --signal says 5 minutes before
    when(lambda: all(map(_was_warned, held)))
    for process in held:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    when(lambda: state(number) == "PENDING")
    longer = ["scontrol", "update", f"jobid={number}", "timelimit=60"]
    when(lambda: subprocess.run(longer).returncode == 0)


def _is_stage(seen: dict[str, Any], folder: Path) -> bool:
    line = seen["cmdline"] or []
    return "dmd.stages.distill" in line and "python" in Path(line[0]).name and seen["cwd"] == str(folder)


def _was_warned(process: psutil.Process) -> bool:
    """Whether SIGUSR1 waits for a process that stands still, or SLURM has woken it."""
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.M)
        warned = any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in pending)
        return warned or process.status() != psutil.STATUS_STOPPED
    return True


def without_generator(local: Path, folder: Path, **changed: Any) -> Path:
    """A copy of the chain in which distill and what follows is still to be made."""
    subprocess.run(["cp", "-a", str(local), str(folder)], check=True)
    for name in ("distill", "samples", "features"):
        subprocess.run(["rm", "-r", str(folder / "results/digits" / name)], check=True)
    write_config(folder, config(**changed))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Path]:
    """The cluster of this module; its own jobs are gone when it stops."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which the cluster's pretended ones would be")
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


def test_a_chain_with_cancelled_jobs_a_drained_node_and_a_killed_snakemake_ends_as_a_local_run(
    local: Path, tmp_path: Path
):
    """Nodes: n2 is the one that SLURM takes first, n1 where that is not to be had."""
    write_config(tmp_path, config())
    first = last()
    snakemake = submitted(tmp_path, FID)
    when(lambda: any(tmp_path.glob("results/digits/pairs/*.tar")), snakemake)
    assert "n2" in {job.where for job in jobs(after=first)}
    cancelled = [cancel("pairs", first)]
    scontrol("update", "nodename=n2", "state=drain", "reason=test")
    drained = last()
    when(lambda: runs("distill", drained) is not None and trains(tmp_path), snakemake, every=2.0)
    meanwhile = jobs(after=drained)  # pairs again, their manifest, distill
    assert {job.where for job in meanwhile} == {"n1"} and len(meanwhile) == 3
    assert asked_and_granted(meanwhile[-1].number) == ("gres:gpu:1", "gpu:h100:1")
    scontrol("update", "nodename=n2", "state=resume")
    cancelled.append(cancel("distill", first))
    when(lambda: runs("distill", cancelled[-1].number) is not None, snakemake)
    snakemake.kill()
    assert snakemake.wait() != 0
    resubmitted = [jobs(rule, after=job.number)[-1] for rule, job in zip(("pairs", "distill"), cancelled, strict=True)]
    when(lambda: state(resubmitted[-1].number) == "COMPLETED")
    assert [job.memory for job in resubmitted] == [3 * job.memory // 2 for job in cancelled]
    assert [job.where for job in resubmitted] == ["n1", "n2"]
    assert "continuing at update" in (tmp_path / "results/digits/logs/distill.log").read_text()
    for words in (["--unlock"], ["--touch", "--force", GENERATOR]):
        subprocess.run(command(tmp_path, *words), check=True, env=ENVIRONMENT, cwd=REPOSITORY)
    said = ends(submitted(tmp_path, FID), tmp_path)
    assert said.count("has been submitted with SLURM jobid") == 3  # two of samples with features, evaluate
    assert jobs("distill", after=first)[-1] == jobs("distill", after=first)[1]
    assert {stage["state"] for stage in watched(tmp_path).values()} == {"done"}
    assert digests(tmp_path) == digests(local)


def test_distill_that_meets_its_time_limit_is_requeued_and_ends_in_the_same_bytes(local: Path, tmp_path: Path):
    folder, first = without_generator(local, tmp_path / "one"), last()
    snakemake = submitted(folder, GENERATOR, gpu_model="h100")
    when(functools.partial(has_trained, folder), snakemake)
    (job,) = jobs(after=first)
    assert (job.limit, job.where) == ("1-00:00:00", "n1")  # the profile's `runtime`; the node of those GPUs
    assert asked_and_granted(job.number) == ("gres:gpu:h100:1", "gpu:h100:1")
    meets_its_limit(job.number, folder)
    ends(snakemake, folder)
    assert [each.number for each in jobs(after=first)] == [job.number]
    assert " Restarts=1 " in scontrol("show", "job", str(job.number))
    assert "continuing at update" in (folder / "results/digits/logs/distill.log").read_text()
    made, wanted = digests(folder), digests(local)
    assert {name: wanted[name] for name in made} == made and GENERATOR.removeprefix("results/") in made


def test_distill_on_two_nodes_that_meets_its_time_limit_trains_as_two_processes_on_one(local: Path, tmp_path: Path):
    """Gradients are summed in another order than by one process, whose losses are the same at first."""
    found, granted = [], []
    for nodes in (1, 2):
        place, first = tmp_path / str(nodes), last()
        folder = without_generator(local, place, distill__processes=2, resources__distill={"nodes": nodes})
        snakemake = submitted(folder, GENERATOR)
        when(functools.partial(has_trained, folder), snakemake)
        (job,) = jobs(after=first)
        granted.append((job.where, *asked_and_granted(job.number)))
        if nodes == 2:
            meets_its_limit(job.number, folder)
        ends(snakemake, folder)
        restarts = f" Restarts={nodes - 1} "
        assert restarts in scontrol("show", "job", str(job.number)) and jobs(after=first)[-1].number == job.number
        found.append((folder / GENERATOR).read_bytes())
    assert "continuing at update" in (folder / "results/digits/logs/distill.log").read_text()
    assert granted[0] == ("n2", "gres:gpu:2", "gpu:a100:2")
    assert granted[1][:2] == ("n[1-2]", "gres:gpu:1 on each node")
    assert set(granted[1][2].split(",")) == {"gpu:h100:1", "gpu:a100:1"}
    assert found[0] == found[1]
    losses = [pq.read_table(each / LOG)["loss/regression"].to_pylist()[:20] for each in (local, folder)]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", ["slurm.conf", "gres.conf"])
def test_a_cluster_that_is_there_is_left_alone(name: str, cluster: Path):
    before = Path(f"/etc/slurm/{name}").read_bytes()
    with pytest.raises(SystemExit, match="another run of this test has its cluster up"), running():
        pass
    assert Path(f"/etc/slurm/{name}").read_bytes() == before and os.path.exists(cluster)
