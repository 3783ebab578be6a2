"""The processes of a stage that torchrun starts: ranks, their group, and one error message if several fail."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmd.config.section_base import Section
from dmd.config.training import Training
from dmd.jobs import slurm
from dmd.provenance import record

if TYPE_CHECKING:
    import torch

LAUNCHER = "DMD_TORCHRUN"  # process number of our torchrun, in the environment of its workers
INHERITED = re.compile(r"(GROUP_|LOCAL_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_\w+")
TIMEOUT = timedelta(hours=1)  # how long others wait while the first writes a checkpoint or draws a grid
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


@functools.cache  # the parent may die
def launched() -> bool:
    """Whether `dmd.jobs.torchrun` started this process; variables such as RANK of other origin mean nothing."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def forget_inherited() -> None:
    """Removes the variables of torchrun from the environment, which libraries would read, and a torchrun started here.

    To be called in processes that are not `launched`.
    """
    for name in filter(INHERITED.fullmatch, list(os.environ)):
        del os.environ[name]


def rank() -> int:
    """Number of this process, from 0; the first one writes."""
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    """The number of processes of this stage."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """Number of this process on its machine, and of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def wanted(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Number of processes in a spec, and number of nodes that share them: those of the SLURM job, 1 outside SLURM.

    Raises:
        ValueError: the nodes cannot have equal numbers of processes.
    """
    num = max((training.processes for training in _trainings(spec.values())), default=1)
    nodes = slurm.nodes() if num > 1 else 1
    if num % nodes:
        raise ValueError(f"processes: {num} cannot be shared evenly by the {nodes} nodes of this job")
    return num, nodes


def _trainings(values: Iterable[Any]) -> Iterator[Training]:
    """Trainings among the values of a spec, and in their sections."""
    for value in values:
        if isinstance(value, Training):
            yield value
        elif isinstance(value, Section):
            yield from _trainings(vars(value).values())


def launch(num: int, nodes: int, *, threads: int) -> None:
    """If `num` is more than 1, replaces this process (exec) by torchrun, which starts the same command `num` times.

    On several nodes, replaces it by srun, which starts torchrun on each.
    """
    spec = sys.modules["__main__"].__spec__
    if num > 1 and spec is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        start, meeting = (slurm.srun(nodes), slurm.rendezvous(nodes)) if nodes > 1 else ([], ["--standalone"])
        command = [*start, sys.executable, "-m", "dmd.jobs.torchrun", *meeting, f"--nproc-per-node={num // nodes}"]
        os.execvp(command[0], [*command, "-m", "--", spec.name, *sys.argv[1:]])


def lock(output: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of an artifact that the first process writes.

    Of several processes it does not wait for another job, since the others would wait for it, see `job.main`.
    """
    if rank() != 0:
        return contextlib.nullcontext()
    return record.writing(output) if count() == 1 else record.exclusive(output)


@contextlib.contextmanager
def group(num: int, device: torch.device) -> Iterator[None]:
    """torch.distributed's default group of `num` processes, where there is more than one.

    Raises:
        ValueError: another number of processes runs, or there are fewer GPUs.
    """
    if num != count():
        raise ValueError(
            f"processes: {num} wanted, {count()} running; start a stage of several processes with "
            f"python -m dmd.jobs.torchrun --standalone --nproc-per-node {num} -m ..."
        )
    if num == 1:
        yield
        return
    import torch
    from torch import distributed

    if device.type == "cuda" and torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", num)):
        raise ValueError(f"processes: {num} need a GPU each, this machine shows {torch.cuda.device_count()}")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)  # if torchrun is killed, its processes are, too
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def first_to_fail() -> bool:
    """Whether this process is the first of the job to fail; later ones fail only because the first is gone."""
    if count() == 1:
        return True
    from torch import distributed

    with contextlib.suppress(RuntimeError):  # torchrun is gone, too
        store, *_ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=10)))
        return bool(store.add("dmd/failed", 1) == 1)
    return True
