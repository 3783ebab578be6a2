"""Trainings in tests: sections with some keys changed, stages that run on them, and updates on given rows."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.updates import FixedRows as FixedRows  # rows that tests give
from dmd.config.training import Distill, TeacherTraining
from dmd.methods.base import Clock, Facts
from dmd.methods.parts.distances import l2_distance
from dmd.provenance import record
from dmd.train.data import PreparedStep, Stream
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.image_shards import image_shards

NAMES = ("generator.safetensors", "log.parquet")
WHOLE = BatchSplit()


def changed(section: dict, **keys: Any) -> dict:
    """A section with other keys: those of every training, `student` and `fake` of their optimiser, the method's own.

    Mappings add up, but those of the method.
    """
    found = copy.deepcopy(section)
    for key, value in keys.items():
        if key in ("student", "fake"):
            found["optimisers"][key] = {**found["optimisers"].get(key, {}), **value}
        elif key in Distill.model_fields:
            found[key] = {**(found.get(key) or {}), **value} if isinstance(value, Mapping) else value
        else:
            found["method"][key] = value
    return found


def train(output: Path, numbers: dict, **given: Any) -> Path:
    """Stage teacher, its log beside its file."""
    from dmd.stages import teacher

    training = numbers["training"] and TeacherTraining.model_validate(numbers["training"])
    kept = {key: value for key, value in numbers.items() if key != "dataset"}
    images = numbers["dataset"] and image_shards(output.parent, numbers["dataset"])
    files = {"output": output, "table": output.with_name("log.parquet"), "images": images}
    teacher.run(**{**files, **kept, "training": training, **given})
    return output


def train_command(output: Path, numbers: dict) -> list[str]:
    """The same as a command line."""
    line = [sys.executable, "-m", "dmd.stages.teacher", "--output", str(output)]
    line += ["--images", str(image_shards(output.parent, numbers["dataset"]))]
    kept = {key: value for key, value in numbers.items() if key != "dataset"}
    return [*line, "--table", str(output.with_name("log.parquet")), "--spec", json.dumps(kept)]


def distil(folder: Path, section: dict, **files: Any) -> Path:
    """Stage distill into a folder, in one process."""
    from dmd.stages import distill

    outputs = {"output": folder / NAMES[0], "table": folder / NAMES[1], "device": "cpu", "threads": 1}
    distill.run(distill=Distill.model_validate(section), **outputs, **files)
    return folder


def command(folder: Path, section: dict, *, teacher: Path, manifest: Path) -> list[str]:
    """The same as a command line."""
    line = [sys.executable, "-m", "dmd.stages.distill", "--teacher", str(teacher), "--manifest", str(manifest)]
    line += ["--output", str(folder / NAMES[0]), "--table", str(folder / NAMES[1]), "--log", str(folder / "log.txt")]
    return [*line, "--spec", json.dumps({**section, "device": "cpu", "threads": 1})]


def digests(folder: Path) -> list[str]:
    """Of both files of a distillation."""
    return [record.check(folder / name) for name in NAMES]


def checkpoints(folder: Path) -> list[int]:
    """Updates that there are checkpoints of."""
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("[0-9]*.safetensors"))


class Updates:
    """A training whose updates work on given rows.

    Attributes:
        trainer: at work on the modules.
    """

    def __init__(
        self,
        section: dict,
        modules: Mapping[str, nn.Module],
        facts: Facts,
        streams: Mapping[str, Stream],
        split: BatchSplit = WHOLE,
    ) -> None:
        training = Distill if section["method"]["name"] != "denoising" else TeacherTraining
        distances = {"none": l2_distance}
        self.trainer: Trainer = assemble(
            training.model_validate(section), modules, facts, distances=distances, split=split
        )
        self._plan, _ = plan(self.trainer.training.method)
        self._loader = loader(self.trainer, streams, self._plan, stage="distill")

    def clock(self, update: int) -> Clock:
        """Where an update stands."""
        return self._plan.clock(update)

    def steps(self, update: int) -> list[PreparedStep]:
        """Its steps with their rows."""
        return self._loader.take(update)

    def update(self, number: int, steps: slice = slice(None)) -> dict[str, float]:
        """One update, or some steps of it; returns its log."""
        return self.trainer.update(self.clock(number), self.steps(number)[steps])

    def __getitem__(self, role: str) -> Any:
        return self.trainer.networks[role]


def weights(module: nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()
