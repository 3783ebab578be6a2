"""Training of a network that starts from random weights, for the stages that do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmd.config.training import Training
from dmd.jobs import processes, reporting
from dmd.methods.base import Facts
from dmd.train import networks
from dmd.train.data import Stream
from dmd.train.loop import TrainingLoop, training_loop
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import assemble


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
    torch.manual_seed(training.seed)
    modules = networks.load(
        training.method,
        None,
        None,
        adapter=None,
        compute=training.compute,
        seed=training.seed,
        device=device,
        new=lambda role: new(),
        log=reporting.log,
    )
    count = sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
    reporting.log(f"{section}: {count} parameters")
    split = BatchSplit(processes.rank(), processes.count(), training.compute.micro_batch_size)
    trainer = assemble(training, modules, facts, distances={}, split=split, start=False)
    return training_loop(trainer, streams, stage_name=stage, section=section, provenance=provenance, folder=folder)
