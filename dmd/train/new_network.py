"""Training of a network that starts from random weights, and its files, for the stages that do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config.training import Training
from dmd.data import manifest
from dmd.jobs import processes, reporting, signals
from dmd.methods.base import Facts
from dmd.provenance import record, tensor_files
from dmd.train import checkpoints, networks, state
from dmd.train.data import Stream
from dmd.train.loop import TrainingLoop, log_table, training_loop
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import assemble

Artifact = tuple[Mapping[str, Tensor], Mapping[str, Any]]  # tensors and metadata of a file


def loop(
    training: Training,
    new: Callable[[], nn.Module],
    facts: Facts,
    streams: Mapping[str, Stream],
    *,
    device: torch.device,
    stage: str,
    section: str,
    provenance: Mapping[str, Any],
    folder: Path,
) -> TrainingLoop:
    """The loop of a method whose only network is new.

    Args:
        new: makes the network on the CPU, its weights drawn from torch's global generator.
        stage, section: names of the stage, and of the key of the training, for messages.
        folder: that of the artifact; checkpoints lie below it.
    """
    modules = networks.load(training, None, None, device=device, new=lambda role: new())
    count = sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
    reporting.log(f"{section}: {count} parameters")
    split = BatchSplit(processes.rank(), processes.count(), training.compute.micro_batch_size)
    trainer = assemble(training, modules, facts, distances={}, split=split, start=False)
    return training_loop(trainer, streams, stage_name=stage, section=section, provenance=provenance, folder=folder)


def train(
    loop: TrainingLoop,
    table: Path,
    artifacts: Callable[[dict[str, Tensor]], Mapping[Path, Artifact]],
    metadata: Mapping[str, Any],
    inputs: record.Inputs,
) -> None:
    """Runs a training; the first process publishes its log and its artifacts, and removes the checkpoints.

    Signals do not interrupt from the first update until then.

    Args:
        table: the log, whose metadata are `metadata`.
        artifacts: gives tensors and further metadata of each file, in order, for the weights `raw.` and `ema.`.
    """
    with signals.deferred():
        rows, weights = loop.run(), state.student_weights(loop.trainer, None)
        if processes.rank() != 0:
            return
        files = artifacts(weights)
        with record.publish(table, stage=loop.stage_name, inputs=inputs) as temporary:
            manifest.write(temporary, log_table(rows), metadata)
        for path, (tensors, facts) in files.items():
            with record.publish(path, stage=loop.stage_name, inputs=inputs) as temporary:
                tensor_files.write(temporary, tensors, {**metadata, **facts})
        checkpoints.clear(loop.checkpoints)
