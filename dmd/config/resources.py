"""Threads, GPUs, memory and time that a job asks for. Only the threads, which are also in its spec, affect results."""

from __future__ import annotations

from dataclasses import dataclass

from dmd.config.artifacts import Experiments
from dmd.config.experiment import JobResources
from dmd.config.rule_table import RULES


@dataclass(frozen=True)
class Resources:
    """Resources of one job, under the names of Snakemake and its SLURM plugin; None asks for nothing.

    Attributes:
        threads: on each machine.
        gpu: number of GPUs of a job on one machine.
        mem_mb: main memory, on each machine.
        runtime: minutes.
        nodes: machines of a distillation.
        tasks, mpi, tasks_per_gpu, gres: for a distillation on several machines. SLURM gets one task per machine, whose
            threads `threads` counts; the stage starts its processes through srun; `gres` is the GPUs of each machine.
    """

    threads: int
    gpu: int | None
    mem_mb: int
    runtime: int
    nodes: int | None = None
    tasks: int | None = None
    mpi: str | None = None
    tasks_per_gpu: int | None = None
    gres: str | None = None


def resources(experiments: Experiments, experiment: str, rule: str, attempt: int = 1) -> Resources:
    """Resources of a job: memory and minutes of its rule, unless `resources` of the experiment says others.

    Each process of a training has its own memory, threads and GPU. Each attempt after the first asks for half of the
    initial memory more. An experiment with `device: cpu` asks for no GPU.
    """
    row, sections = RULES[rule], experiments.sections(experiment)
    asked = getattr(sections.resources, rule, JobResources())
    training = experiments.training(experiment, rule)
    nodes = getattr(asked, "nodes", None)
    several = nodes if nodes != 1 else None
    processes = training.processes // (nodes or 1) if training else 1  # on each machine
    gpus = processes if (row.computed or row.gpu) and sections.device != "cpu" else 0
    return Resources(
        threads=processes * sections.threads if row.computed or row.threads else 1,
        gpu=None if several else gpus,
        mem_mb=processes * ((asked.memory_mb or row.memory_mb) * (attempt + 1) // 2),
        runtime=round(60 * asked.hours) if asked.hours else row.minutes,
        nodes=nodes,
        tasks=several,
        mpi="srun" if several else None,
        tasks_per_gpu=0 if several else None,
        gres=f"gpu:{gpus}" if several and gpus else None,
    )
