"""Runs updates of a distillation as stage distill does, with networks from files or from memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dmd.config.training import Distill
from dmd.data import manifest as manifests
from dmd.data.pairs import PairReader
from dmd.methods.base import Distance, Facts, Part, Rows
from dmd.methods.parts.distances import l2_distance
from dmd.models import loading
from dmd.train import checkpoints, networks
from dmd.train.data import NoiseStream, PairStream, Stream
from dmd.train.measured_update import measured_steps
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, loader, plan

NONE = Path("checkpoints")  # no checkpoint is written


@dataclass(frozen=True)
class FixedRows:
    """A stream that gives the same rows, on the CPU, in every update; there must be enough for the largest part.

    Where rows are groups, those that lack are the first ones again.
    """

    values: Rows

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """See `dmd.train.data.Stream`."""
        if part.group == 1:
            return {name: value[mine] for name, value in self.values.items()}
        items = torch.arange(mine.start * part.group, mine.stop * part.group)
        return {name: value[items % len(value)].unflatten(0, (-1, part.group)) for name, value in self.values.items()}


class Updates:
    """Runs updates with prefetched rows, losses, optimisers, moving average and log row.

    Attributes:
        trainer: the trainer; `Trainer.start` has been called.
        done: number of updates so far.
    """

    def __init__(self, trainer: Trainer, streams: Mapping[str, Stream]) -> None:
        self.trainer, self.done = trainer, 0
        self._plan, _ = plan(trainer.training.method)
        self._loader = loader(trainer, streams, self._plan, stage="distill")
        self._rows: list[dict[str, float]] = []
        trainer.start()

    def next(self) -> None:
        """Runs the next update."""
        steps, clock = self._loader.take(self.done), self._plan.clock(self.done)
        row = self.trainer.update(clock, steps)
        checkpoints.check_finite(row, self.done, NONE, advice="distill.optimisers.student.learning_rate")
        self._rows.append({"update": self.done, "phase": clock.phase.index, **row})
        self.done += 1

    def close(self) -> None:
        """Ends the prefetching thread."""
        self._loader.close()


def trainer(
    section: Distill,
    modules: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    *,
    num_classes: int = 0,
    text: bool = False,
    sigma_data: float = 0.5,
    distance: Distance = l2_distance,
) -> Trainer:
    """A trainer before `Trainer.start`, for networks that are on their device; every decoder gets the same distance."""
    facts = Facts(shape, num_classes, sigma_data, text=text)
    split = BatchSplit(micro_batch_size=section.compute.micro_batch_size)
    distances = dict.fromkeys(section.method.decoders(), distance)
    return assemble(section, modules, facts, distances=distances, split=split, start=False)


def from_files(
    teacher: Path,
    manifest: Path,
    section: Distill,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    distance: Distance = l2_distance,
) -> Updates:
    """Updates with networks and pairs from files; all networks start with the teacher's weights."""
    file = loading.denoiser_file(teacher)
    classes = int(file.facts["num_classes"])
    modules = networks.load(section, file, file, device=device, new=_no_network)
    shape = tuple(file.facts["shape"])
    assembled = trainer(
        section, modules, shape, num_classes=classes, sigma_data=file.facts["sigma_data"], distance=distance
    )
    pairs = PairReader(manifests.read(manifest), seed=section.seed)
    streams: dict[str, Stream] = {"noise": NoiseStream(assembled.method.facts), "pairs": PairStream(pairs)}
    measured_steps(assembled, streams)  # as in the stage, for its memory plan
    return Updates(assembled, streams)


def _no_network(role: str) -> nn.Module:
    raise ValueError(f"the measured methods make no network {role}")
