"""How torch computes in a job: its threads, its device, deterministic algorithms."""

import torch

from dmd.jobs import processes
from dmd.models.compute import Compute, set_tf32


def set_threads(num: int) -> None:
    """Sets torch's number of threads, which changes results: that of the spec, whatever a scheduler granted.

    Also asks for deterministic algorithms, on CPUs only (see `choose_device`), and turns TF32 off, unless a spec turns
    it on later.
    """
    torch.set_num_threads(num)
    set_tf32(Compute())
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler, 1 s
    # filling new memory, which nothing reads before it is written, takes 6 % of a pass
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_device(name: str) -> torch.device:
    """The device for "cpu" or "auto", which is a GPU if there is one: that of this process, or the first.

    GPUs run without deterministic algorithms, which are slow there and would not make all kernels repeatable.
    """
    if name not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.count() > 1 and processes.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(processes.local_rank())
    torch.set_deterministic_debug_mode("default")
    return torch.device("cuda", torch.cuda.current_device())
