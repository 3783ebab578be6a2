"""The SLURM job that a stage runs in: its nodes, their rendezvous, and requeueing."""

from __future__ import annotations

import os
import subprocess

LOWEST_PORT, NUM_PORTS = 20000, 10000  # below the ephemeral ports


def nodes() -> int:
    """The number of nodes of this job; 1 outside SLURM.

    Asks the controller if need be, since Snakemake removes most of SLURM's variables from the environment of its jobs.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return 1
    return int(os.environ.get("SLURM_JOB_NUM_NODES") or _answer("squeue", "--noheader", f"--job={job}", "--format=%D"))


def srun(num: int) -> list[str]:
    """The beginning of a command that runs once on each of `num` nodes, with all resources of the job there."""
    job = os.environ["SLURM_JOB_ID"]
    line = ["srun", f"--jobid={job}", f"--nodes={num}", f"--ntasks={num}", "--ntasks-per-node=1"]
    return [*line, "--cpu-bind=none", "--kill-on-bad-exit=1"]


def rendezvous(num: int) -> list[str]:
    """Arguments of torchrun for the rendezvous of `num` nodes on the first node of the job."""
    job = os.environ["SLURM_JOB_ID"]
    names = _answer("squeue", "--noheader", f"--job={job}", "--format=%N")
    first = _answer("scontrol", "show", "hostnames", names).split()[0]
    facts = dict(each.split("=", 1) for each in _answer("scontrol", "show", "node", first).split() if "=" in each)
    endpoint = f"{facts['NodeAddr']}:{LOWEST_PORT + int(job) % NUM_PORTS}"
    return [f"--nnodes={num}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job}"]


def is_first_node() -> bool:
    """Whether this task runs on the first node, which hosts the rendezvous."""
    return os.environ.get("SLURM_NODEID") == "0"


def requeue(*, advanced: bool) -> str:
    """Asks SLURM to requeue this batch job; returns the end of a log message about it, empty outside SLURM.

    A job that has not `advanced` is not requeued: it would reach its time limit again without progress.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    if not advanced:
        return "; not requeued, since it made no progress within its time limit: ask for a longer one"
    try:
        _answer("scontrol", "requeue", job)
    except ValueError as error:
        return f"; not requeued: {error}"
    return f"; SLURM starts job {job} again"


def _answer(*line: str) -> str:
    """What a SLURM command prints; ValueError if it fails, or where squeue prints nothing."""
    try:
        answer = subprocess.run(line, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{' '.join(line)}: {error}") from error
    if answer.returncode or (line[0] == "squeue" and not answer.stdout.strip()):
        raise ValueError(f"{' '.join(line)}: {answer.stderr.strip() or 'no answer'}")
    return answer.stdout.strip()
