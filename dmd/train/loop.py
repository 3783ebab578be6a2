"""The training loop of stages teacher and distill; it resumes from the last checkpoint if there is one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dmd.data.columns import numbers
from dmd.jobs import job_status, processes, reporting, signals
from dmd.models.compute import set_tf32
from dmd.provenance import memory_limit
from dmd.train import checkpoints, drift, measured_update, memory, state
from dmd.train.data import BatchLoader, Stream
from dmd.train.grids import save_grid
from dmd.train.monitor import Monitor
from dmd.train.tensorboard_log import EventLog
from dmd.train.trainer import Plan, Trainer, loader, plan


@dataclass
class TrainingLoop:
    """The updates of one training. Only the first process writes files.

    Attributes:
        stage_name: name of the stage that trains.
        section: key of the training's section, for messages, such as "distill".
        key: identifies the run of a checkpoint; see `checkpoints.checkpoint_key`.
        folder: holds checkpoints/, grids/ and tensorboard/, which are temporary.
        draw_grid: returns images (B, C, H, W) that show the progress; None for no grids.
        grid_every: updates between two grids.
        monitor: measures the student; None: nothing is measured.
        training_passes: network passes of the training, which limit how often the monitor measures.
    """

    stage_name: str
    section: str
    trainer: Trainer
    loader: BatchLoader
    plan: Plan
    key: str
    folder: Path
    draw_grid: Callable[[], torch.Tensor] | None
    grid_every: int
    monitor: Monitor | None = None
    training_passes: int = 0
    _events: EventLog | None = field(default=None, init=False)
    _signs: set[str] = field(default_factory=set, init=False)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def run(self) -> list[dict[str, float]]:
        """Runs the remaining updates; returns the log rows of every `log_every`-th update from the first on.

        An update after which the student is measured has a row in any case.

        Raises:
            Stopped: a process got a signal; a checkpoint was written after the update during which it came.
            ValueError: a logged value is not finite; the message names the update and the last good checkpoint.
        """
        training, total = self.trainer.training, self.plan.total
        set_tf32(training.compute.model_dump())  # type: ignore[arg-type]
        self.trainer.start()
        first, rows = checkpoints.resume(
            self.checkpoints, key=self.key, trainer=self.trainer, log=reporting.log, monitor=self.monitor
        )
        self._check_same_update(first)
        reporting.log(f"{total} updates in {len(self.plan.phases)} phases")
        if self.monitor is not None:
            self.monitor.start(total, training_passes=self.training_passes)
            self._tell(rows)
        advice = memory.training_advice(self.section, training.method.refuses)
        status = reporting.Progress(total=total, unit="updates", done=first)
        with contextlib.closing(self.loader), self._event_log(first, rows):
            for update in range(first, total):
                clock = self.plan.clock(update)
                with memory.explain_out_of_memory(update, self.checkpoints, advice=advice):
                    steps = self.loader.take(update)
                    row = self.trainer.update(clock, steps)
                    measured = self.monitor is not None and self.monitor.due(update + 1, total)
                    if self.monitor is not None and measured:
                        row |= self.monitor.measure(update + 1)
                memory_limit.check()  # in every process, before any process writes
                checkpoints.check_finite(
                    row, update, self.checkpoints, advice=f"{self.section}.optimisers.student.learning_rate"
                )
                if measured or update % training.log_every == 0:
                    rows.append({"update": update, "phase": clock.phase.index, **row})
                    if self._events:
                        self._events.row(rows[-1])
                if measured:
                    self._tell(rows)
                stopping = self._asked_to_stop() and update + 1 < total
                self._save(update + 1, rows, stopping=stopping)
                parts = [part for prepared in steps for part in prepared.step.parts if part.stream]
                status.add(images=sum(part.size * part.group for part in parts))
                if stopping:
                    self._check_same_update(update + 1)  # no process ends before the checkpoint is written
                    cause = signals.received() or "a signal to another process"
                    message = f"stopped by {cause} at update {update + 1} of {total}: run again to continue"
                    raise signals.Stopped(message, advanced=True)
        return rows

    @contextlib.contextmanager
    def _event_log(self, first: int, rows: list[dict[str, float]]) -> Iterator[None]:
        """Keeps the TensorBoard log open in the first process, if the configuration asks for one."""
        if not self.trainer.training.tensorboard or processes.rank() != 0:
            yield
            return
        grids = sorted(path for path in (self.folder / "grids").glob("[0-9]*.png") if int(path.stem) <= first)
        self._events = EventLog(self.folder / "tensorboard", rows=rows, grids=grids)
        with contextlib.closing(self._events):
            yield

    def _check_same_update(self, update: int) -> None:
        """ValueError unless all processes are at the same update."""
        total = self.trainer.split.add_up(torch.tensor(update, device=self.trainer.networks.device))
        if total != update * processes.count():
            raise ValueError(f"processes disagree on the checkpoint in {self.checkpoints}: one is at update {update}")

    def _tell(self, rows: list[dict[str, float]]) -> None:
        """Notes in the status file what the monitor measured last; logs each sign of drift when it first appears."""
        measured = drift.measured(rows)
        if not measured:
            return
        signs = drift.signs(measured, [range(phase.first, phase.stop) for phase in self.plan.phases])
        job_status.note(drift.summary(measured, signs))
        for sign in signs:
            if sign.name not in self._signs:
                reporting.log(f"drift after {int(measured[-1]['update']) + 1} updates: {sign}")
        self._signs = {sign.name for sign in signs}

    def _asked_to_stop(self) -> bool:
        """Whether any process received a signal; all processes return the same."""
        asked = torch.tensor(signals.received() is not None, dtype=torch.int64, device=self.trainer.networks.device)
        return bool(self.trainer.split.add_up(asked))

    def _save(self, done: int, rows: list[dict[str, float]], *, stopping: bool) -> None:
        """Writes a checkpoint and a grid if they are due; of sharded networks every process sends its shards."""
        training, total, leads = self.trainer.training, self.plan.total, processes.rank() == 0
        if not leads and not training.compute.shard_parameters:
            return
        if stopping or done % training.checkpoint_every == 0 and done < total:
            tensors = state.state(self.trainer)
            if leads:
                checkpoints.save(
                    self.checkpoints,
                    stage=self.stage_name,
                    key=self.key,
                    update=done,
                    tensors=tensors,
                    rows=rows,
                    monitor=self.monitor.state() if self.monitor else None,
                )
        if self.draw_grid is not None and (done % self.grid_every == 0 or done == total):
            image = self.draw_grid()
            if leads:
                save_grid(path := self.folder / "grids" / f"{done:08d}.png", image.cpu())
                if self._events:
                    self._events.grid(path)


def training_loop(
    trainer: Trainer,
    streams: Mapping[str, Stream],
    *,
    stage_name: str,
    section: str,
    provenance: Mapping[str, Any],
    folder: Path,
    draw_grid: Callable[[], torch.Tensor] | None = None,
    grid_every: int = 1,
    monitor: Monitor | None = None,
) -> TrainingLoop:
    """The `TrainingLoop` over the method's phases; logs phases and keys without effect, and the memory plan.

    Raises:
        ValueError: no phase has a loss, or the GPU has less memory than an update needs.
    """
    phases, notes = plan(trainer.training.method)
    for line in notes:
        reporting.log(line)
    advice = memory.training_advice(section, trainer.training.method.refuses)
    steps = memory.announce_training(trainer, streams, advice=advice)
    if monitor is not None:
        monitor.count_passes()
    return TrainingLoop(
        stage_name=stage_name,
        section=section,
        trainer=trainer,
        loader=loader(trainer, streams, phases, stage=stage_name),
        plan=phases,
        key=checkpoints.checkpoint_key(provenance, method_version=trainer.training.method.version),
        folder=folder,
        draw_grid=draw_grid,
        grid_every=grid_every,
        monitor=monitor,
        training_passes=sum(measured_update.total_passes(steps).values()),
    )


def log_table(rows: list[dict[str, float]]) -> pa.Table:
    """Log rows as a table: update, phase, then the other columns by name; NaN where an update has no value."""
    names = ["update", "phase", *sorted({name for row in rows for name in row} - {"update", "phase"})]
    dtypes = {"update": np.int64, "phase": np.int64}
    columns = [numbers([row.get(name, math.nan) for row in rows], dtypes.get(name, np.float64)) for name in names]
    return pa.table(columns, names)
