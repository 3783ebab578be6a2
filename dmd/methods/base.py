"""What a method says of itself: networks, data, optimiser steps, losses. `dmd.train` does the rest.

A method is one file here and one class in `dmd.config.methods`; no method inherits from another. The file has a class
that derives from `Method`, named `METHOD`; its `name` in the configuration is the name of the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dmd.config.method import MethodSection, PlannedPhase
from dmd.models.calls import Calls

Rows = dict[str, Tensor]  # by field, one row per sample
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Samples that a step works on together.

    Attributes:
        name: within its step; within the update, where a later part carries its rows.
        stream: where its rows come from: noise, pairs, trajectories, images; none where `carries` names a part.
        size: samples of the whole batch, over all processes and micro-batches.
        among: the first so many items of the stream; None is all of them.
        carries: an earlier part of the same update that goes on: its rows, what its loss kept, and its micro-batches.
    """

    name: str
    size: int
    stream: str | None = None
    among: int | None = None
    carries: str | None = None


@dataclass(frozen=True)
class Step:
    """Gradients of all parts add up; then each role in `trains` takes one optimiser step, in this order.

    Attributes:
        name: in the log, and in the methods below.
        dropout: roles whose dropout is on in this step; see `Method.replay`.
    """

    name: str
    trains: tuple[str, ...]
    parts: tuple[Part, ...]
    dropout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """Where a training stands: update number `update` of all `total`, in `phase`."""

    update: int
    total: int
    phase: PlannedPhase

    @property
    def in_phase(self) -> int:
        """Number of the update within its phase, from 0."""
        return self.update - self.phase.first


@dataclass(frozen=True)
class Facts:
    """What the data of a training are.

    Attributes:
        shape: (C, H, W) of an image.
        num_classes: 0 where there are no labels.
        sigma_data: standard deviation of the data.
        text: the condition is text states.
        sigma_max: the last noise level of the network that training starts from; None where it has no last.
        network: architecture of the network that training starts from; None where it is no network.
    """

    shape: tuple[int, ...]
    num_classes: int
    sigma_data: float
    text: bool = False
    sigma_max: float | None = None
    network: Mapping[str, object] | None = None


class StepLog(Protocol):
    """What a loss leaves for the log: sums over rows, micro-batches, steps of one name and processes."""

    def mean(self, name: str, values: Tensor, *, weights: Tensor | None = None) -> None:
        """Mean of values (b, ...) of this micro-batch's rows; `weights` (b,) of 0 leave rows out."""

    def scalar(self, name: str, value: Tensor, rows: int) -> None:
        """A mean over the `rows` rows of this micro-batch, such as a loss."""

    def total(self, name: str, values: Tensor) -> None:
        """Sum of values (b,)."""

    def spread(self, name: str, values: Tensor) -> None:
        """Mean and standard deviation of all elements, as columns `{name}/mean` and `{name}/std`."""

    def binned(self, name: str, values: Tensor, bins: Tensor, num_bins: int) -> None:
        """Means of values (b,) by bin (b,), as columns `{name}0`, `{name}1`, ...; an empty bin has none."""

    def value(self, name: str) -> Tensor:
        """The mean `name` of the step at hand, or those of all bins, over all rows and processes.

        All processes have to ask together.
        """


class Networks(Protocol):
    """The networks of a method, on their device: what `begin` may do with them besides calling them."""

    def __getitem__(self, role: str) -> nn.Module:
        """The denoiser, or other network, of a role."""

    def copy(self, role: str, source: str, *, averaged: bool = False) -> None:
        """Sets the weights of `role` to those of `source`; `averaged` takes the student's moving average."""

    def follow(self, role: str, source: str, decay: float) -> None:
        """Moves the weights of `role` towards those of `source`: decay * role + (1 - decay) * source."""

    def restart_average(self) -> None:
        """Begins the student's moving average anew at its weights of now."""

    def forget_moments(self, role: str) -> None:
        """Clears the Adam moments of a role."""


Config = TypeVar("Config", bound=MethodSection)


def _nothing() -> None:
    """There is no pass to replay where nothing drops out."""


@dataclass
class Method(ABC, Generic[Config]):
    """One method at work.

    All but `draw` and `steps` see micro-batches of this process; no row's loss depends on other rows. A loss that needs
    batch statistics keeps them in `buffers` and sets them in `after`, one update late.

    Attributes:
        config: its section.
        networks: by role, on their device.
        facts: of the data.
        device: of the networks.
        distances: of images, (made, reference) -> scalar, by the decoder that latents go through; see
            `MethodSection.distance`.
        buffers: tensors besides networks and optimisers that checkpoints keep, on the networks' device; all of them are
            made in `__post_init__`.
    """

    config: Config
    networks: Networks
    facts: Facts
    device: torch.device
    distances: Mapping[str, Distance] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict, init=False)
    _replay: Callable[[], None] = field(default_factory=lambda: _nothing, init=False)

    @classmethod
    def new_network(cls, config: Config, role: str, facts: Facts) -> nn.Module:
        """The network of a role whose source is NEW, with random weights of torch's global generator, on the CPU."""
        raise ValueError(f"method {config.name} makes no network {role}")

    @classmethod
    @abstractmethod
    def steps(cls, config: Config, clock: Clock) -> tuple[Step, ...]:
        """Optimiser steps of one update, in order: a function of config and clock alone, which costs nothing."""

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Random values by part, for whole batches, on the CPU: noise levels and noise.

        The rows of all parts of a step come first, then what this draws, then the next step. It is called while the
        update before is at work, and so reads nothing that an update or `configure` sets: the phase is in the clock.
        """
        return {}

    @abstractmethod
    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Mean over the rows of one micro-batch, on the device; parts that carry it see what it adds to `rows`."""

    def replay(self) -> None:
        """Sets torch's global generators back to where the pass at hand began: a second pass has the same dropout."""
        self._replay()

    def configure(self, phase: PlannedPhase) -> None:
        """Sets what a phase decides: a function of config and phase alone, called before its first update here."""

    def begin(self, phase: PlannedPhase) -> None:
        """What happens once at the first update of a phase, such as teacher := student; never again on resume."""

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """What follows a step: moving targets, statistics, of which `log.value` has sums over all processes."""

    def sampling(self) -> Calls | None:
        """How the student is sampled, for its file; None where it is a denoiser that any solver takes."""
        return None

    def keep(self, phase: PlannedPhase) -> Calls | None:
        """How the student that a phase ends with is sampled, if its average is to stay in the file: one set of weights
        for each number of calls. A function of config and phase alone; the last phase needs none, see `sampling`.
        """
        return None
