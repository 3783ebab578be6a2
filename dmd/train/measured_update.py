"""Memory and network passes of one update of any method, measured on updates with one row and with two rows.

Every step runs its losses and backward passes as the trainer does, but no optimiser. Memory is linear in the number of
rows, so two measurements determine it; passes are counted per row.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd import forward_ad

from dmd.methods.base import Clock, Part, Rows, Step
from dmd.models.tensor_bytes import LinearBytes, Peak, weight_bytes
from dmd.train.data import Stream
from dmd.train.log_columns import UpdateLog
from dmd.train.optimiser import moment_bytes
from dmd.train.trainer import Plan, Trainer

NUM_UPDATES = 64  # the first updates of a phase, taken as typical of all its updates


@dataclass(frozen=True)
class MeasuredPart:
    """One part of a step.

    Attributes:
        size: rows of the whole batch.
        activations: memory of its loss and backward pass, without gradients of weights and without distances.
        distance: whether the loss uses a distance between images.
        passes: per row, by role of the network: a forward pass counts 1, with a backward pass 2, or 3 if the weights
            get gradients; a forward-mode derivative is one more. A pass to the bottleneck counts half of that. It is a
            mean over draws if their number is random.
    """

    size: int
    activations: LinearBytes
    distance: bool
    passes: Mapping[str, float]


@dataclass(frozen=True)
class MeasuredStep:
    """One step of an update, and the number of updates of its phase that have the same steps."""

    step: Step
    updates: int
    parts: Mapping[str, MeasuredPart]


def measured_steps(trainer: Trainer, streams: Mapping[str, Stream], *, draws: int = 1) -> list[MeasuredStep]:
    """Every kind of step of a training, measured on its own networks, whose weights do not change.

    Call it before `Trainer.start`: compiled networks would be compiled again for one and for two rows.

    Args:
        draws: of the random values, over which passes are averaged: students of several calls make as many calls
            without gradient as lie before the call that is drawn.

    Only the first updates of a phase are examined; a pattern of steps counts for the same fraction of the whole phase.
    """
    method, section = type(trainer.method), trainer.training.method
    plan, measured = Plan(section.plan()[0]), list[MeasuredStep]()
    distances, trains, counts = trainer.method.distances, trainer.networks.trains, Counter[str]()
    trainer.method.distances = {name: _counting_distance(counts) for name in distances}
    try:
        for phase in plan.phases:
            updates = range(phase.first, min(phase.first + NUM_UPDATES, phase.stop))
            patterns: dict[tuple[Step, ...], list[Clock]] = {}
            for clock in map(plan.clock, updates):
                patterns.setdefault(method.steps(section, clock), []).append(clock)
            trainer.method.configure(phase)
            for steps, clocks in patterns.items():
                num = round(phase.config.updates * len(clocks) / len(updates))
                measured += _measure_steps(trainer, streams, clocks[0], steps, num, counts, draws)
    finally:
        trainer.method.distances = distances
        trainer.networks.train_only(trains)
        trainer.forget_phase()
        for role in trainer.training.optimisers:
            trainer.networks.weights(role).zero_grad()
    return measured


def total_passes(steps: list[MeasuredStep]) -> dict[str, int]:
    """Passes of each role's network over one row in a whole training."""
    totals: dict[str, float] = {}
    for measured in steps:
        for part in measured.parts.values():
            for role, passes in part.passes.items():
                totals[role] = totals.get(role, 0) + measured.updates * part.size * passes
    return {role: round(total) for role, total in totals.items()}


def memory_plan(trainer: Trainer, steps: list[MeasuredStep], distance_bytes: Callable[[int], int]) -> dict[str, int]:
    """Bytes by purpose at the peak of an update, without the workspace of kernels.

    Args:
        distance_bytes: num -> bytes that the distance needs for `num` images.
    """
    networks, split, compute = trainer.networks, trainer.split, trainer.training.compute
    sizes = {role: weight_bytes(networks[role]) for role in networks}
    optimisers = trainer.training.optimisers
    trained = {role: weight_bytes(networks.weights(role)) for role in optimisers}
    moments = sum(moment_bytes(networks.weights(role).parameters(), config.kind) for role, config in optimisers.items())
    parts = {f"weights of {role}": size for role, size in sizes.items() if size}
    parts |= {"moving average": trained["student"], "moments": moments}
    parts["gradients"] = max(sum(trained[role] for role in measured.step.trains) for measured in steps)
    if compute.shard_parameters:  # the gathered block is not counted
        parts = {name: -(-size // split.processes) for name, size in parts.items()}
    elif split.processes > 1:
        parts["exchange of gradients"] = split.exchange_bytes
    largest = [_largest_part(measured, split.largest, distance_bytes) for measured in steps]
    return parts | max(largest, key=lambda part: max(part.values()))


def _largest_part(
    measured: MeasuredStep, largest: Callable[[int], int], distance_bytes: Callable[[int], int]
) -> dict[str, int]:
    """Title and bytes of the part of a step that needs most memory, as a dict of one entry."""
    sizes = {}
    for name, part in measured.parts.items():
        num = largest(part.size)
        distance = distance_bytes(num) if part.distance else 0
        suffix = " and their distance" if distance else ""
        title = f"activations of {num} rows of {name}, step {measured.step.name}{suffix}"
        sizes[title] = part.activations.of(num) + distance
    title = max(sizes, key=lambda key: sizes[key])
    return {title: sizes[title]}


def _counting_distance(counts: Counter[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """A distance that takes little memory, and counts its calls."""

    def distance(image: Tensor, reference: Tensor) -> Tensor:
        counts["distance"] += 1
        return (image - reference).float().square().mean()

    return distance


def _measure_steps(
    trainer: Trainer,
    streams: Mapping[str, Stream],
    clock: Clock,
    steps: tuple[Step, ...],
    updates: int,
    counts: Counter[str],
    draws: int,
) -> Iterator[MeasuredStep]:
    one_row, two_rows = (_run(trainer, streams, clock, steps, num, counts) for num in (1, 2))
    others = [_run(trainer, streams, clock, steps, 1, counts, seed=seed) for seed in range(1, draws)]
    for number, step in enumerate(steps):
        parts = {}
        for part in step.parts:
            (one, first, distance), (two, _, _) = one_row[number][part.name], two_rows[number][part.name]
            drawn = [first, *(run[number][part.name][1] for run in others)]
            roles = dict.fromkeys(role for passes in drawn for role in passes)
            passes = {role: sum(each.get(role, 0) for each in drawn) / draws for role in roles}
            activations = LinearBytes(two - one, max(2 * one - two, 0))
            parts[part.name] = MeasuredPart(part.size, activations, distance, passes)
        yield MeasuredStep(step, updates, parts)


Measured = tuple[int, dict[str, float], bool]  # bytes, passes per row, whether a distance was used


def _run(
    trainer: Trainer,
    streams: Mapping[str, Stream],
    clock: Clock,
    steps: tuple[Step, ...],
    num: int,
    counts: Counter[str],
    *,
    seed: int = 0,
) -> list[dict[str, Measured]]:
    """Runs one update with `num` rows per part; returns its measurements by step and part."""
    networks, random = trainer.networks, torch.Generator().manual_seed(seed)
    earlier: dict[str, Rows] = {}
    by_step: list[dict[str, Measured]] = []
    for step in steps:
        networks.train_only(step.trains)
        networks.use_dropout(step.dropout)
        for role in step.trains:
            for parameter in networks.weights(role).parameters():
                parameter.grad = torch.zeros_like(parameter)
        small = {part.name: dataclasses.replace(part, size=num) for part in step.parts}
        read = {name: _rows(streams, part, num, random) for name, part in small.items()}
        with unset_fake_temporarily():  # a method may read what it draws
            drawn = {
                name: {key: _some_rows(values, num) for key, values in rows.items()}
                for name, rows in trainer.method.draw(step, clock, random).items()
            }
        by_part: dict[str, Measured] = {}
        for part in step.parts:
            own = read[part.name] | drawn.get(part.name, {})
            rows = {name: values.to(networks.device) for name, values in own.items()}
            if part.carries is not None:
                rows = earlier[part.carries] | rows
            before = counts["distance"]
            with _count_passes(trainer) as passes, Peak() as peak:
                loss = trainer.method.loss(step, part, rows, clock, UpdateLog(trainer.split))
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
            earlier[part.name] = rows
            per_row = {role: total / num for role, total in passes.items()}
            by_part[part.name] = peak.most, per_row, counts["distance"] > before
        by_step.append(by_part)
        for role in step.trains:
            networks.weights(role).zero_grad()
    return by_step


def _some_rows(values: Tensor, num: int) -> Tensor:
    """The first `num` rows; a batch of one row has it again."""
    return values[torch.arange(num) % len(values)]


def _rows(streams: Mapping[str, Stream], part: Part, num: int, random: torch.Generator) -> Rows:
    rows = {} if part.stream is None else streams[part.stream].rows(part, 0, slice(0, num), random)
    return {name: _some_rows(values, num) for name, values in rows.items()}


@contextmanager
def _count_passes(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Counts rows of passes of each role's network, weighted as in `MeasuredPart.passes`."""
    networks, totals = trainer.networks, dict[str, float]()

    def counter(role: str, share: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        learns = any(parameter.requires_grad for parameter in networks.weights(role).parameters())

        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = 1 if not output.requires_grad else 3 if learns else 2
            weight += forward_ad.unpack_dual(output).tangent is not None
            totals[role] = totals.get(role, 0) + share * weight * len(inputs[0])

        return count

    with ExitStack() as stack:
        for role in networks:
            if (network := networks.network(role)) is not None:
                stack.callback(network.register_forward_hook(counter(role, 1)).remove)
                if hasattr(network, "bottleneck"):
                    stack.enter_context(_hooked_bottleneck(network, counter(role, 0.5)))
        yield totals


@contextmanager
def _hooked_bottleneck(
    network: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
) -> Iterator[None]:
    """Calls `hook` after each pass to the bottleneck, which is no forward pass of a module."""
    original: Any = network.bottleneck

    def bottleneck(*inputs: Tensor) -> Tensor:
        output: Tensor = original(*inputs)
        hook(network, inputs, output)
        return output

    network.bottleneck = bottleneck  # type: ignore[assignment]
    try:
        yield
    finally:
        del network.bottleneck
