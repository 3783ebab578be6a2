"""The memory plan of a stage: printed before work starts, and compared with what the GPU has left."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from dmd.stages import stage
from dmd.train import checkpoints, watch
from dmd.train.counting import weight_bytes
from dmd.train.data import Stream
from dmd.train.memory import distance_bytes, drawing_parts, working
from dmd.train.trainer import Trainer

GIB = 2**30


def training_advice(section: str) -> str:
    """Keys of a section that trains, "distill" or "teacher.training", which spare memory."""
    adapter = "an adapter, " if section == "distill" else ""
    return (
        f"lower {section}.compute.micro_batch_size, set gradient_checkpointing or dtype bfloat16 there, "
        f"{section}.optimisers.student.kind 8bit, {adapter}or more {section}.processes"
    )


def announce_training(trainer: Trainer, streams: Mapping[str, Stream], *, advice: str) -> None:
    """The plan of a training, whose networks are on their device; an update of two rows is made and forgotten."""
    distances, shape = [*trainer.method.distances.values()], trainer.method.facts.shape
    parts = watch.memory_plan(
        trainer,
        watch.watch(trainer, streams),
        lambda num: max((distance_bytes(each, shape, num) for each in distances), default=0),
    )
    here = sum(size for name, size in parts.items() if name.startswith("weights of") or name == "moving average")
    announce(parts, trainer.networks.device, here=here, advice=advice, exact=not trainer.training.compute.compile)


def announce_drawing(denoiser: nn.Module, shape: tuple[int, ...], batch_size: int, device: torch.device) -> None:
    """The plan of stages that draw images, `batch_size` at once; the denoiser is on its device, not compiled yet."""
    weights = weight_bytes(denoiser)
    parts = drawing_parts(weights=weights, found=working(denoiser, shape), batch_size=batch_size)
    announce(parts, device, here=weights, advice="lower batch_size, or set compute.dtype bfloat16")


def announce(parts: Mapping[str, int], device: torch.device, *, here: int, advice: str, exact: bool = True) -> None:
    """Logs the plan, and stops where it cannot be met.

    Args:
        parts: bytes by purpose; all of them are needed at once.
        device: where they are needed; memory of a CPU is not compared.
        here: bytes of `parts` that are allocated already.
        advice: keys of the configuration that make the plan smaller.
        exact: whether no less than `parts` will do; else a plan that cannot be met is a warning.

    Raises:
        ValueError: an exact plan, and the GPU has less memory left than the plan needs.
    """
    stage.log(f"memory plan, GiB: {'; '.join(f'{name} {size / GIB:.3g}' for name, size in parts.items())}")
    total = sum(parts.values())
    stage.log(f"memory plan: at least {total / GIB:.3g} GiB on {device}")
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    refuse(total - here, free, advice, exact=exact)


def refuse(need: int, free: int, advice: str, *, exact: bool = True) -> None:
    """ValueError if `need` bytes are more than the `free` ones; a line in the log where `need` is not exact."""
    if need <= free:
        return
    what = f"{need / GIB:.3g} GiB more of GPU memory are needed, {free / GIB:.3g} GiB are free: {advice}"
    if exact:
        raise ValueError(f"at least {what}")
    stage.log(f"warning: perhaps {what}")


@contextlib.contextmanager
def explained(update: int, folder: Path, *, advice: str) -> Iterator[None]:
    """ValueError with the advice, and the last checkpoint in `folder`, where the GPU's memory ends in an update."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"GPU memory does not suffice at update {update}: {str(error).splitlines()[0]}"
        raise ValueError(f"{what}; {checkpoints.kept(folder)}: {advice}") from error
