"""What one update of any method takes: memory and network passes, seen on updates of one and of two rows.

The losses and backward passes of every step are run as the trainer runs them, without a step of any optimiser. Memory
of a pass is a line in its rows, so that two points say it; passes are counted by row.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.methods.base import Clock, Part, Rows, Step
from dmd.models.counting import Line, Peak, weight_bytes
from dmd.train.data import Stream
from dmd.train.log import UpdateLog
from dmd.train.optimiser import moment_bytes
from dmd.train.trainer import Plan, Trainer

LOOKED_AT = 64  # updates at the beginning of a phase whose steps are told apart


@dataclass(frozen=True)
class WatchedPart:
    """One part of a step.

    Attributes:
        size: rows of the whole batch.
        activations: memory of its loss and backward pass, gradients of weights and what a distance takes apart.
        distance: whether the loss takes a distance of images.
        passes: of the network of each role, over one row; one whose gradient reaches its weights counts 3, one whose
            gradient only goes through counts 2.
    """

    size: int
    activations: Line
    distance: bool
    passes: Mapping[str, int]


@dataclass(frozen=True)
class WatchedStep:
    """One step, and how many updates of the training make it; of two that are alike in one update it counts both."""

    step: Step
    updates: int
    parts: Mapping[str, WatchedPart]


def watch(trainer: Trainer, streams: Mapping[str, Stream]) -> list[WatchedStep]:
    """Every kind of step that a training makes, on its own networks, which are left as they are.

    It belongs before `Trainer.start`: compiled networks would be compiled for one and two rows as well.

    A phase is told by its first updates: each pattern of steps among them stands for its part of the phase.
    """
    method, section = type(trainer.method), trainer.training.method
    plan, found = Plan(section.plan()[0]), list[WatchedStep]()
    distances, trains, counts = trainer.method.distances, trainer.networks.trains, Counter[str]()
    trainer.method.distances = {name: _plain(counts) for name in distances}
    try:
        for phase in plan.phases:
            looked = range(phase.first, min(phase.first + LOOKED_AT, phase.stop))
            patterns: dict[tuple[Step, ...], list[Clock]] = {}
            for clock in map(plan.clock, looked):
                patterns.setdefault(method.steps(section, clock), []).append(clock)
            trainer.method.configure(phase)
            for steps, clocks in patterns.items():
                updates = round(phase.config.updates * len(clocks) / len(looked))
                found += _watched(trainer, streams, clocks[0], steps, updates, counts)
    finally:
        trainer.method.distances = distances
        trainer.networks.train_only(trains)
        trainer.forget_phase()
        for role in trainer.training.optimisers:
            trainer.networks.weights(role).zero_grad()
    return found


def total_passes(steps: list[WatchedStep]) -> dict[str, int]:
    """Passes of each role's network over one row in a whole training."""
    totals: Counter[str] = Counter()
    for each in steps:
        for part in each.parts.values():
            for role, passes in part.passes.items():
                totals[role] += each.updates * part.size * passes
    return dict(totals)


def memory_plan(trainer: Trainer, steps: list[WatchedStep], distance_bytes: Callable[[int], int]) -> dict[str, int]:
    """Bytes by purpose at the fullest moment of an update; working memory of kernels comes on top.

    Args:
        distance_bytes: what the distance of images takes of so many.
    """
    networks, split, compute = trainer.networks, trainer.split, trainer.training.compute
    sizes = {role: weight_bytes(networks[role]) for role in networks}
    optimisers = trainer.training.optimisers
    trained = {role: weight_bytes(networks.weights(role)) for role in optimisers}
    moments = sum(moment_bytes(networks.weights(role).parameters(), config.kind) for role, config in optimisers.items())
    parts = {f"weights of {role}": size for role, size in sizes.items() if size}
    parts |= {"moving average": trained["student"], "moments": moments}
    parts["gradients"] = max(sum(trained[role] for role in each.step.trains) for each in steps)
    if compute.shard_parameters:  # the block that is whole for now comes on top
        parts = {name: -(-size // split.processes) for name, size in parts.items()}
    elif split.processes > 1:
        parts["exchange of gradients"] = split.exchange_bytes
    fullest = [_fullest(each, split.largest, distance_bytes) for each in steps]
    return parts | max(fullest, key=lambda one: max(one.values()))


def _fullest(
    watched: WatchedStep, largest: Callable[[int], int], distance_bytes: Callable[[int], int]
) -> dict[str, int]:
    """Name and bytes of the part of a step that takes most."""
    found = {}
    for name, part in watched.parts.items():
        num = largest(part.size)
        more = distance_bytes(num) if part.distance else 0
        told = " and their distance" if more else ""
        found[f"activations of {num} rows of {name}, step {watched.step.name}{told}"] = part.activations.of(num) + more
    name = max(found, key=lambda key: found[key])
    return {name: found[name]}


def _plain(counts: Counter[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """A distance that takes next to nothing, and counts its calls."""

    def distance(image: Tensor, reference: Tensor) -> Tensor:
        counts["distance"] += 1
        return (image - reference).float().square().mean()

    return distance


def _watched(
    trainer: Trainer,
    streams: Mapping[str, Stream],
    clock: Clock,
    steps: tuple[Step, ...],
    updates: int,
    counts: Counter[str],
) -> Iterator[WatchedStep]:
    one, two = (_run(trainer, streams, clock, steps, num, counts) for num in (1, 2))
    for number, step in enumerate(steps):
        parts = {}
        for part in step.parts:
            (least, passes, distance), (most, _, _) = one[number][part.name], two[number][part.name]
            line = Line(most - least, max(2 * least - most, 0))
            parts[part.name] = WatchedPart(part.size, line, distance, passes)
        yield WatchedStep(step, updates, parts)


Seen = tuple[int, dict[str, int], bool]  # bytes, passes, whether a distance was asked


def _run(
    trainer: Trainer,
    streams: Mapping[str, Stream],
    clock: Clock,
    steps: tuple[Step, ...],
    num: int,
    counts: Counter[str],
) -> list[dict[str, Seen]]:
    """One update of `num` rows a part."""
    networks, random = trainer.networks, torch.Generator().manual_seed(0)
    kept: dict[str, Rows] = {}
    found: list[dict[str, Seen]] = []
    for step in steps:
        networks.train_only(step.trains)
        networks.use_dropout(step.dropout)
        for role in step.trains:
            for parameter in networks.weights(role).parameters():
                parameter.grad = torch.zeros_like(parameter)
        small = {part.name: dataclasses.replace(part, size=num) for part in step.parts}
        given = {name: _rows(streams, part, num, random) for name, part in small.items()}
        drawn = trainer.method.draw(step, clock, random)
        seen: dict[str, Seen] = {}
        for part in step.parts:
            own = given[part.name] | {name: values[:num] for name, values in drawn.get(part.name, {}).items()}
            rows = {name: values.to(networks.device) for name, values in own.items()}
            if part.carries is not None:
                rows = kept[part.carries] | rows
            before = counts["distance"]
            with _counted(trainer) as passes, Peak() as peak:
                loss = trainer.method.loss(step, part, rows, clock, UpdateLog(trainer.split))
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
            kept[part.name] = rows
            by_row = {role: total // num for role, total in passes.items()}
            seen[part.name] = peak.most, by_row, counts["distance"] > before
        found.append(seen)
        for role in step.trains:
            networks.weights(role).zero_grad()
    return found


def _rows(streams: Mapping[str, Stream], part: Part, num: int, random: torch.Generator) -> Rows:
    return {} if part.stream is None else streams[part.stream].rows(part, 0, slice(0, num), random)


@contextmanager
def _counted(trainer: Trainer) -> Iterator[dict[str, int]]:
    """Passes of each role's network within, times their rows."""
    networks, totals = trainer.networks, dict[str, int]()

    def counter(role: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        learns = any(parameter.requires_grad for parameter in networks.weights(role).parameters())

        def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            weight = 1 if not output.requires_grad else 3 if learns else 2
            totals[role] = totals.get(role, 0) + weight * len(given[0])

        return count

    with ExitStack() as stack:
        for role in networks:
            if (network := networks.network(role)) is not None:
                stack.callback(network.register_forward_hook(counter(role)).remove)
        yield totals
