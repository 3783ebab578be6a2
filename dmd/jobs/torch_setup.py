"""How torch computes in a job: its threads, its device, deterministic algorithms."""

import torch

from dmd.jobs import processes
from dmd.models.compute import Compute, set_tf32


def set_threads(num: int) -> None:
    """Threads of torch: from the spec, never from what a scheduler granted, since their number changes bytes.

    Also asks for deterministic algorithms, for CPUs (see `choose_device`), and turns TF32 off until a spec wants it.
    """
    torch.set_num_threads(num)
    set_tf32(Compute())
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler, 1 s
    # filling memory that nothing reads costs 6 % of a pass
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_device(name: str) -> torch.device:
    """ "cpu", or "auto": a GPU where there is one, the first or that of this process.

    A GPU works without deterministic algorithms: they are slow there, and would not make all kernels repeatable.
    """
    if name not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.count() > 1 and processes.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(processes.local_rank())
    torch.set_deterministic_debug_mode("default")
    return torch.device("cuda", torch.cuda.current_device())
