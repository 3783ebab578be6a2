"""Memory of a training: the plan that is logged before it starts, and the error if a GPU runs out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from dmd.jobs import gpu_memory
from dmd.methods.parts.distances import Chunked
from dmd.models.tensor_bytes import saved_bytes
from dmd.train import checkpoints, measured_update
from dmd.train.data import Stream
from dmd.train.trainer import Trainer


def training_advice(section: str, refuses: Collection[str]) -> str:
    """Names the keys of a section, such as "distill", to change to save memory, without what its method refuses."""
    refused = {*refuses, *(["adapter"] if section != "distill" else [])}
    ways = {
        "micro_batch_size": f"lower {section}.compute.micro_batch_size",
        "gradient_checkpointing": f"set {section}.compute.gradient_checkpointing: true",
        "dtype": f"set {section}.compute.dtype: bfloat16",
        "adapter": f"set {section}.adapter",
        "processes": f"use more {section}.processes",
    }
    chosen = [way for key, way in ways.items() if key not in refused]
    chosen += [f"lower {section}.method.batch_size"] if "micro_batch_size" in refused else []
    return ", or ".join([*chosen, f"set {section}.optimisers.student.kind: 8bit"])


def announce_training(
    trainer: Trainer, streams: Mapping[str, Stream], *, advice: str
) -> list[measured_update.MeasuredStep]:
    """Logs the memory that a training needs, measured on updates of one and of two rows, which change no weights.

    Returns:
        The steps that were measured.
    """
    distances, shape = [*trainer.method.distances.values()], trainer.method.facts.shape
    steps = measured_update.measured_steps(trainer, streams)
    parts = measured_update.memory_plan(
        trainer,
        steps,
        lambda num: max((distance_bytes(distance, shape, num) for distance in distances), default=0),
    )
    allocated = sum(size for name, size in parts.items() if name.startswith("weights of") or name == "moving average")
    gpu_memory.announce(
        parts, trainer.networks.device, allocated=allocated, advice=advice, exact=not trainer.training.compute.compile
    )
    return steps


def distance_bytes(distance: object, shape: tuple[int, ...], num: int) -> int:
    """Activation bytes of a distance for `num` images or latents: those of a `Chunked` one (LPIPS, decoded), else 0."""
    if not isinstance(distance, Chunked):
        return 0
    like = next(chain(distance.buffers(), distance.parameters()))
    image = like.new_zeros((1, *shape)).requires_grad_()
    return min(num, distance.chunk) * saved_bytes(distance, lambda: distance.total(image, image.detach()))


@contextlib.contextmanager
def explain_out_of_memory(update: int, folder: Path, *, advice: str) -> Iterator[None]:
    """If the GPU runs out of memory, raises a ValueError with the last checkpoint in `folder` and the advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"GPU memory does not suffice at update {update}: {str(error).splitlines()[0]}"
        raise ValueError(f"{what}; {checkpoints.last_checkpoint(folder)}: {advice}") from error
