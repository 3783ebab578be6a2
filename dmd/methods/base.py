"""The interface of a method: optimiser steps, random draws, losses. `dmd.train` does the rest.

A method is one file here and one class in `dmd.config.methods`; no method inherits from another. The file is named
after the method's `name` in the configuration, and its constant `METHOD` is a class that derives from `Method`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dmd.config.method_base import STUDENT, MethodSection, PlannedPhase
from dmd.models.denoiser import Denoiser
from dmd.models.student_calls import Calls
from dmd.sampling.noise import level_range

Rows = dict[str, Tensor]  # by field, one row per sample
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """A batch of samples within a step.

    Attributes:
        name: unique in its step, and in the update if a later part carries it.
        stream: source of its rows: noise, pairs, trajectories, images; None if `carries` names a part.
        size: samples of the whole batch, over all processes and micro-batches.
        among: only the first `among` items of the stream are used; None is all of them.
        carries: name of an earlier part of the same update; this part gets that part's rows, with what the loss added
            to them, in the same micro-batches.
        group: number of images that make one row, (b, group, C, H, W) with labels (b, group); of stream images alone.
    """

    name: str
    size: int
    stream: str | None = None
    among: int | None = None
    carries: str | None = None
    group: int = 1


@dataclass(frozen=True)
class Step:
    """One optimiser step of each role in `trains`, in this order, on the sum of the gradients of all parts.

    Attributes:
        name: kind of the step, by which the method tells its steps apart.
        dropout: roles whose dropout is on in this step; see `Method.replay`.
    """

    name: str
    trains: tuple[str, ...]
    parts: tuple[Part, ...]
    dropout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """Progress of a training: update number `update` of `total`, in `phase`."""

    update: int
    total: int
    phase: PlannedPhase

    @property
    def in_phase(self) -> int:
        """Number of the update within its phase, from 0."""
        return self.update - self.phase.first


@dataclass(frozen=True)
class Facts:
    """Properties of the data, and of the network that training starts from.

    Attributes:
        shape: (C, H, W) of an image.
        num_classes: 0 if there are no labels.
        sigma_data: standard deviation of the data.
        text: whether the condition is text states.
        sigma_max: highest noise level of that network; None if it has no highest one.
        network: architecture of that network; None if the denoiser is no network.
        trained: lowest and highest noise level that both it and the teacher were trained on.
        preconditioning, scheduler: those of its file; None if it has none.
        empty: text states (L, E) of the empty prompt, for a method that drops prompts; None if there are none.
        guidance_range: lowest and highest guidance, if that network takes the guidance as an input.
    """

    shape: tuple[int, ...]
    num_classes: int
    sigma_data: float
    text: bool = False
    sigma_max: float | None = None
    network: Mapping[str, object] | None = None
    trained: tuple[float, float] = (0.0, math.inf)
    preconditioning: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None
    empty: Tensor | None = None
    guidance_range: tuple[float, float] | None = None

    def levels(self, sigma_min: float | None, sigma_max: float | None, *, key: str) -> tuple[float, float]:
        """`noise.level_range` for the section `key` of the configuration."""
        return level_range(sigma_min, sigma_max, trained=self.trained, key=key, teacher="the teacher")

    def highest(self, sigma: float | None, *, key: str) -> float:
        """The value of `key`, where None is the highest noise level; ValueError if that is not known."""
        level = self.sigma_max if sigma is None else sigma
        if level is None:
            raise ValueError(
                f"{key}: null is the highest noise level of the denoiser to start from, which has none: give a number"
            )
        return float(level)


class StepLog(Protocol):
    """Columns that a loss adds to the log; they are reduced over rows, micro-batches, steps and processes."""

    def mean(self, name: str, values: Tensor, *, weights: Tensor | None = None) -> None:
        """Mean of values (b, ...) over the rows of this micro-batch, by weights (b,); rows of weight 0 do not count."""

    def scalar(self, name: str, value: Tensor, rows: int) -> None:
        """A value that is already a mean over the `rows` rows of this micro-batch, such as a loss."""

    def total(self, name: str, values: Tensor) -> None:
        """Sum of values (b,)."""

    def spread(self, name: str, values: Tensor) -> None:
        """Mean and standard deviation of all elements, as columns `{name}/mean` and `{name}/std`."""

    def binned(self, name: str, values: Tensor, bins: Tensor, num_bins: int, *, weights: Tensor | None = None) -> None:
        """Means of values (b,) per bin (b,), as columns `{name}0`, `{name}1`, ...; an empty bin has no value.

        `weights` (b,) are as in `mean`.
        """

    def value(self, name: str) -> Tensor:
        """The mean `name` of the current step, or the means of its bins, over all rows and processes.

        All processes must call it together.
        """


class Networks(Protocol):
    """The networks of a method, on their device, and the operations on weights for `begin` and `after`."""

    def __getitem__(self, role: str) -> nn.Module:
        """The denoiser or other network of a role."""

    def copy(self, role: str, source: str, *, averaged: bool = False) -> None:
        """Sets the weights of `role` to those of `source`; `averaged` takes the student's moving average."""

    def follow(self, role: str, source: str, decay: float) -> None:
        """Moves the weights of `role` towards those of `source`: decay * role + (1 - decay) * source."""

    def restart_average(self) -> None:
        """Resets the student's moving average to its current weights."""


Config = TypeVar("Config", bound=MethodSection)


def _no_dropout() -> None:
    """Does nothing: without dropout there is no random state to restore."""


@dataclass
class Method(ABC, Generic[Config]):
    """A method with its networks.

    `loss` gets micro-batches of this process; the loss of a row must not depend on other rows. A loss that needs batch
    statistics reads those of the previous update, which `after` has written to `buffers`.

    Attributes:
        config: its section of the configuration.
        networks: by role, on their device.
        facts: of the data, and of the network that training starts from.
        device: of the networks.
        distances: distance functions of images, (generated, reference) -> scalar, by the decoder of latents; see
            `MethodSection.distance`.
        buffers: further tensors that checkpoints hold, on the networks' device; `__post_init__` makes all of them.
    """

    config: Config
    networks: Networks
    facts: Facts
    device: torch.device
    distances: Mapping[str, Distance] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict, init=False)
    _replay: Callable[[], None] = field(default_factory=lambda: _no_dropout, init=False)

    @classmethod
    def new_network(cls, config: Config, role: str, facts: Facts) -> nn.Module:
        """The network of a role whose source is NEW, on the CPU, its weights drawn from torch's global generator."""
        raise ValueError(f"method {config.name} makes no network {role}")

    @classmethod
    @abstractmethod
    def steps(cls, config: Config, clock: Clock) -> tuple[Step, ...]:
        """Optimiser steps of one update, in order: a cheap function of config and clock alone."""

    def denoiser(self, role: str) -> Denoiser:
        """The network of a role that is a denoiser."""
        return self.networks[role]  # type: ignore[return-value]

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Random values by part, for whole batches, on the CPU: noise levels and noise.

        `random` first draws the rows of all parts of a step, then these values, then the rows of the next step. The
        previous update may still run in another thread, so this must not read what an update or `configure` sets; the
        phase is in the clock.
        """
        return {}

    def noise(self, num: int, random: torch.Generator) -> Tensor:
        """Unit noise (num, C, H, W), for `draw`."""
        return torch.randn((num, *self.facts.shape), generator=random)

    @abstractmethod
    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Mean over the rows of one micro-batch, on the device; parts that carry `part` get what it adds to `rows`."""

    def replay(self) -> None:
        """Resets torch's global generators to the start of this pass, so that a second pass has the same dropout."""
        self._replay()

    def configure(self, phase: PlannedPhase) -> None:
        """Sets the values of a phase: a function of config and phase alone, called on entering it and on resume."""

    def begin(self, phase: PlannedPhase) -> None:
        """Runs once, before the first update of a phase, not on resume; it may copy the student to the teacher, say."""

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """Runs after each step, to update target networks and statistics; `log.value` has means over all processes."""

    def sampling(self) -> Calls:
        """How the student is sampled, for its file; ValueError if the method trains a teacher or a part of one."""
        raise ValueError(f"method {self.config.name} trains no student that is sampled in a few calls")

    def generate(self, rows: Rows) -> Tensor:
        """Images (B, C, H, W) of unit noise, drawn as `sampling` says."""
        return self.sampling().draw(self.networks[STUDENT], rows["noise"], rows["label"])

    def fewer_calls(self) -> Mapping[int, Calls]:
        """How the student is sampled with fewer calls, by their number, where these are not the first of `sampling`."""
        return {}

    def keep(self, phase: PlannedPhase) -> Calls | None:
        """How the student of the end of a phase is sampled if the file keeps its averaged weights, else None.

        A function of config and phase alone. The file has one set of weights per number of calls; those of the last
        phase are described by `sampling`.
        """
        return None
