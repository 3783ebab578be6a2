"""One update of any method: micro-batches, sums over processes, optimiser steps, moving average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from dmd import methods
from dmd.config.method_base import STUDENT, MethodSection, PlannedPhase
from dmd.config.training import Training
from dmd.methods.base import Clock, Distance, Facts, Method, Part, Rows
from dmd.models.compute import compile_network
from dmd.models.student_calls import Calls
from dmd.train import sharding
from dmd.train.data import BatchLoader, PreparedStep, Stream
from dmd.train.log_columns import UpdateLog
from dmd.train.networks import NetworkSet, compute_switches
from dmd.train.optimiser import Optimiser, learning_rate_factor
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import seed_pass


@dataclass(frozen=True)
class Plan:
    """The phases of a training that have a loss, in order."""

    phases: Sequence[PlannedPhase]

    @property
    def total(self) -> int:
        """Updates of all phases."""
        return self.phases[-1].stop if self.phases else 0

    def clock(self, update: int) -> Clock:
        """The clock of update number `update`; ValueError if it belongs to no phase."""
        for phase in self.phases:
            if phase.first <= update < phase.stop:
                return Clock(update, self.total, phase)
        raise ValueError(f"update {update} belongs to no phase")


@dataclass
class Trainer:
    """Runs the updates of a method.

    Attributes:
        training: the section of the configuration.
        method: with its networks on their device.
        networks: the same networks, with their optimisers.
        split: this process's part of every batch.
        earlier: averaged weights of the student, or of its adapter, at the end of earlier phases; on the CPU, by number
            of network calls of that student; see `Method.keep`.
    """

    training: Training
    method: Method[Any]
    networks: NetworkSet
    split: BatchSplit = BatchSplit()
    earlier: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    _phase: PlannedPhase | None = field(default=None, init=False)

    def start(self) -> None:
        """Compiles and shards networks as `compute` says, and makes optimisers; call once, before the first update."""
        for role in self.networks:
            compile_network(self.networks[role], compute_switches(self.training))
        if self.training.compute.shard_parameters:
            self.networks.shard()
        for role, config in self.training.optimisers.items():
            self.networks.optimisers[role] = Optimiser(self.networks.weights(role), config, self.split)

    def update(self, clock: Clock, steps: Sequence[PreparedStep]) -> dict[str, float]:
        """Runs one update on prepared rows; returns its log columns."""
        self._enter(clock)
        log, earlier_rows = UpdateLog(self.split), dict[str, list[Rows]]()
        to_carry = [part.carries for prepared in steps for part in prepared.step.parts if part.carries]
        for number, prepared in enumerate(steps):
            step = prepared.step
            self.networks.train_only(step.trains)
            self.networks.use_dropout(step.dropout)
            for index, part in enumerate(step.parts):
                micro_batches = self._micro_batches(part, prepared.rows[part.name], earlier_rows)
                if part.carries:
                    to_carry.remove(part.carries)
                    if part.carries not in to_carry:
                        del earlier_rows[part.carries]
                for micro_batch, (rows, num) in enumerate(micro_batches):
                    if step.dropout:
                        self._seed(clock.update, number, index, micro_batch)
                    loss = self.method.loss(step, part, rows, clock, log)
                    (num / part.size * loss).backward()  # type: ignore[no-untyped-call]
                    if part.name in to_carry:
                        earlier_rows.setdefault(part.name, []).append(rows)
            self.networks.drop_gradients(step.trains)
            for role in step.trains:
                log.scalar(f"gradient_norm/{role}", self.networks.optimisers[role].update(), 1)
                if role == STUDENT:
                    self.networks.average_student()
            self.method.after(step, clock, log)
            log.next_step()
        self._keep(clock)
        return log.columns()

    def _seed(self, update: int, *position: int) -> None:
        """Seeds a pass with dropout, now and each time that the method replays it."""
        self.method._replay = partial(seed_pass, self.training.seed, update, *position, self.split.rank)
        self.method.replay()

    def earlier_calls(self, done: int) -> dict[str, Calls]:
        """How the students in `earlier` are sampled, by number of calls, after `done` updates."""
        phases, _ = self.training.method.plan()
        found = [self.method.keep(phase) for phase in phases[:-1] if phase.stop <= done]
        return {str(len(calls.sigmas)): calls for calls in found if calls is not None}

    def pass_size(self) -> int:
        """Number of images in this process's largest micro-batch of the first update."""
        phases, _ = self.training.method.plan()
        steps = type(self.method).steps(self.training.method, Clock(0, phases[-1].stop, phases[0]))
        return max(
            rows.stop - rows.start for step in steps for part in step.parts for rows in self.split.slices(part.size)
        )

    def configure(self, clock: Clock) -> None:
        """Sets the method to the phase of an update, unless it is set already."""
        if self._phase != clock.phase:
            self.method.configure(clock.phase)
            self._phase = clock.phase

    def forget_phase(self) -> None:
        """Makes the next update set the method to its phase again."""
        self._phase = None

    def _enter(self, clock: Clock) -> None:
        """Sets phase and learning rates for an update."""
        self.configure(clock)
        schedule, phase = self.training.schedule, clock.phase
        update, total = (
            (clock.in_phase, phase.config.updates) if schedule.over == "phase" else (clock.update, clock.total)
        )
        factor = learning_rate_factor(update, total=total, warmup=schedule.warmup, decay=schedule.decay)
        for optimiser in self.networks.optimisers.values():
            optimiser.scale_rate(factor * phase.config.learning_rate_scale)
        if clock.update == phase.first:
            if phase.config.fresh_optimiser:
                self.networks.optimisers[STUDENT].forget_moments()
            self.method.begin(phase)

    def _keep(self, clock: Clock) -> None:
        """Copies the student's moving average at the end of a phase if the method keeps it; not in the last phase."""
        if clock.update + 1 != clock.phase.stop or clock.phase.stop == clock.total:
            return
        if (calls := self.method.keep(clock.phase)) is not None:
            weights = self.networks.average.module.state_dict()
            self.earlier[str(len(calls.sigmas))] = {
                name: sharding.gather(value).clone() for name, value in weights.items()
            }

    def _micro_batches(self, part: Part, own: Rows, earlier: dict[str, list[Rows]]) -> list[tuple[Rows, int]]:
        """This process's rows of a part as micro-batches on the device, with the number of rows of each.

        A part that carries an earlier part reuses its micro-batches; values drawn for the new part replace old ones.
        """
        mine, device = self.split.part(part.size), self.networks.device
        micro_batches = []
        for number, batch in enumerate(self.split.slices(part.size)):
            local = slice(batch.start - mine.start, batch.stop - mine.start)
            rows = {name: values[local].to(device) for name, values in own.items()}
            if part.carries is not None:
                rows = earlier[part.carries][number] | rows
            micro_batches.append((rows, batch.stop - batch.start))
        return micro_batches


def plan(method: MethodSection) -> tuple[Plan, list[str]]:
    """The plan of a method, and notes on keys that have no effect.

    Raises:
        ValueError: no phase has a loss.
    """
    phases, lines = method.plan()
    if not phases:
        raise ValueError(f"no phase has a loss ({'; '.join(lines)})")
    return Plan(phases), lines


def assemble(
    training: Training,
    modules: Mapping[str, nn.Module],
    facts: Facts,
    *,
    distances: Mapping[str, Distance],
    split: BatchSplit,
    start: bool = True,
) -> Trainer:
    """The trainer for a section, with networks that are on their device already; `start`: calls `Trainer.start`."""
    networks = NetworkSet(modules, training.method.roles(), ema_decay=training.ema_decay)
    method = methods.load(training.method.name)(training.method, networks, facts, networks.device, distances)
    trainer = Trainer(training, method, networks, split)
    if start:
        trainer.start()
    return trainer


def loader(trainer: Trainer, streams: Mapping[str, Stream], plan: Plan, *, stage: str) -> BatchLoader:
    """The loader of the rows of every update; its random numbers also depend on `stage`."""
    return BatchLoader(
        trainer.method,
        streams,
        plan.clock,
        total=plan.total,
        stage=stage,
        seed=trainer.training.seed,
        split=trainer.split,
    )
