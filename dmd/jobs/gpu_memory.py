"""The memory plan of a job: printed before work starts, and compared with what the GPU has left."""

from collections.abc import Mapping

import torch

from dmd.jobs import reporting

GIB = 2**30


def announce(
    parts: Mapping[str, int], device: torch.device, *, allocated: int, advice: str, exact: bool = True
) -> None:
    """Logs the plan, and raises ValueError if the GPU has too little memory for it.

    Args:
        parts: bytes by purpose; all of them are needed at once.
        device: where they are needed; on a CPU nothing is compared.
        allocated: bytes of `parts` that are allocated already.
        advice: keys of the configuration that make the plan smaller.
        exact: whether the job surely needs all of `parts`; if not, too little memory only gives a warning.

    Raises:
        ValueError: the plan is exact and needs more memory than the GPU has left.
    """
    reporting.log(f"memory plan, GiB: {'; '.join(f'{name} {size / GIB:.3g}' for name, size in parts.items())}")
    total = sum(parts.values())
    reporting.log(f"memory plan: at least {total / GIB:.3g} GiB on {device}")
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    refuse(total - allocated, free, advice, exact=exact)


def refuse(need: int, free: int, advice: str, *, exact: bool = True) -> None:
    """Raises ValueError if `need` bytes exceed `free`, or logs a warning if `need` is not exact."""
    if need <= free:
        return
    what = f"{need / GIB:.3g} GiB more of GPU memory are needed, {free / GIB:.3g} GiB are free: {advice}"
    if exact:
        raise ValueError(f"at least {what}")
    reporting.log(f"warning: perhaps {what}")
