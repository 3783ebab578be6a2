"""Memory of a training: its plan before work starts, distances of images, and the message where a GPU's memory ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from dmd.cluster import gpu_memory
from dmd.methods.parts.distances import Chunked
from dmd.models.counting import kept_bytes
from dmd.train import checkpoints, watch
from dmd.train.data import Stream
from dmd.train.trainer import Trainer


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
    allocated = sum(size for name, size in parts.items() if name.startswith("weights of") or name == "moving average")
    gpu_memory.announce(
        parts, trainer.networks.device, allocated=allocated, advice=advice, exact=not trainer.training.compute.compile
    )


def distance_bytes(distance: object, shape: tuple[int, ...], num: int) -> int:
    """What a distance keeps of `num` images or latents, a chunk at a time: LPIPS, decoders; 0 for others."""
    if not isinstance(distance, Chunked):
        return 0
    like = next(chain(distance.buffers(), distance.parameters()))
    image = like.new_zeros((1, *shape)).requires_grad_()
    return min(num, distance.chunk) * kept_bytes(distance, lambda: distance.total(image, image.detach()))[0]


@contextlib.contextmanager
def explained(update: int, folder: Path, *, advice: str) -> Iterator[None]:
    """ValueError with the advice, and the last checkpoint in `folder`, where the GPU's memory ends in an update."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"GPU memory does not suffice at update {update}: {str(error).splitlines()[0]}"
        raise ValueError(f"{what}; {checkpoints.kept(folder)}: {advice}") from error
