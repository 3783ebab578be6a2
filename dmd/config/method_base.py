"""The base class of the sections of methods: networks, data, phases. Does not import torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pydantic import Field

from dmd.config.section_base import Count, Positive, Repeats, Section

WEIGHTS = ("ema", "raw", "best")  # a student's: moving average over updates; last update; see `training.Monitor`
STUDENT, TEACHER = "student", "teacher"
PAIRED = frozenset({"pairs", "trajectories"})  # streams that rule pairs makes
DENOISER_SWITCHES = ("dtype", "channels_last", "compile", "gradient_checkpointing", "shard_parameters")  # of `compute`


class Mode(Enum):
    """How a training changes a network."""

    FROZEN = "frozen"  # not at all; not in checkpoints
    TRAINED = "trained"  # by its optimiser
    COPIED = "copied"  # by the method, from other networks: a moving target, the teacher of a later round


class Source(Enum):
    """Where the weights of a network come from."""

    TEACHER = "teacher"  # the teacher's file
    START = "start"  # the file of `distill.start`, else the teacher's
    NEW = "new"  # random; the method makes the architecture
    STUDENT = "student"  # the initial weights of the student


@dataclass(frozen=True)
class Role:
    """One network of a method. The trainer builds it; a method never copies a network itself.

    Attributes:
        guidance: classifier-free guidance of its calls; 1 is none.
        second_time: whether the network gets an input more, a second time, that changes nothing at first.
        guidance_input: whether the network gets the guidance as an input, which changes nothing at first, in place of a
            second pass without the condition; `guidance` is that of calls that name none.
        states: number of states of a path that the network gives in one pass; above 1 it has new layers for it, which
            change nothing at first.
    """

    source: Source
    mode: Mode
    guidance: float = 1.0
    second_time: bool = False
    guidance_input: bool = False
    states: int = 1

    def additions(self) -> dict[str, Any]:
        """What its network has that the teacher's has not: arguments of `dmd.models.networks.extended`."""
        inputs = {"second_time": self.second_time, "guidance": self.guidance_input}
        states = {"states": self.states} if self.states > 1 else {}
        return {name: True for name, value in inputs.items() if value} | states


def score_roles(guidance: float = 1.0) -> dict[str, Role]:
    """Teacher (real score), student (generator) and fake denoiser (fake score)."""
    return {
        TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=guidance),
        STUDENT: Role(Source.START, Mode.TRAINED),
        "fake": Role(Source.START, Mode.TRAINED),
    }


class Phase(Section):
    """Consecutive updates of a training with the same settings. Methods add their own keys."""

    updates: Count = Field(description="of the student, or of the network that the phase trains")
    learning_rate_scale: Positive = Field(1.0, description="factor on every learning rate")
    fresh_optimiser: bool = Field(False, description="clear the student's Adam moments first")


class FakePhase(Phase):
    """A phase of a method with a fake denoiser."""

    fake_updates: Repeats = Field(1, description="updates of the fake denoiser per update of the student")


@dataclass(frozen=True)
class PlannedPhase:
    """A phase that has a loss: updates first .. first + config.updates - 1.

    Attributes:
        index: position in the configured list of phases, from 0; skipped phases count.
        config: the phase as configured.
    """

    index: int
    first: int
    config: Phase

    @property
    def stop(self) -> int:
        """The first update after the phase."""
        return self.first + self.config.updates


class MethodSection(Section):
    """Section `method` of a training. Each method has `name`, its tag, and `phases`.

    Attributes:
        optimiser_defaults: by role, the method's own defaults of its optimiser; a role that is not listed has those of
            the student.
        schedule_defaults: the method's own defaults of the schedule.
        refuses: what the method does not support: keys of `compute` that must keep their defaults, "adapter", or
            several "processes".
        keeps_guidance: whether a teacher may take the guidance as an input, so that the student does, too.
        keeps_first_calls: whether the student also draws with fewer calls, since each of them ends at an image; else
            an earlier call ends at an image that still has noise.
        streams: what the method reads besides noise, whatever its keys say: pairs, trajectories, images.
    """

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    schedule_defaults: ClassVar[Mapping[str, Any]] = {}
    refuses: ClassVar[tuple[str, ...]] = ()
    keeps_guidance: ClassVar[bool] = False
    keeps_first_calls: ClassVar[bool] = False
    streams: ClassVar[frozenset[str]] = frozenset()
    name: str
    phases: Sequence[Phase]

    @abstractmethod
    def roles(self) -> dict[str, Role]:
        """The networks by name; `student` is averaged and exported."""

    def guidance_range(self) -> tuple[float, float] | None:
        """Lowest and highest guidance, where the loss draws one for each image; None if there is one for all."""
        return None

    def reads(self) -> frozenset[str]:
        """Streams besides noise that any phase of this configuration reads."""
        return self.streams

    def losses(self, phase: Phase) -> frozenset[str]:
        """Names of the losses of a phase; a phase without losses is skipped."""
        return frozenset({STUDENT})

    def distance(self) -> Section | None:
        """The section of the distance of images in the losses; None if there is none."""
        return None

    def decoders(self) -> tuple[str, ...]:
        """Latent decoders of the distance in all phases, in order of first use; "none" counts as one."""
        return ()

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Weights ("ema", "raw", "best") in the student's file by number of network calls."""
        last = self.final_calls()
        return dict.fromkeys(range(1 if self.keeps_first_calls else last, last + 1), WEIGHTS)

    def final_calls(self) -> int:
        """Network calls of the student at the end of training: key `calls`, their number or their noise levels."""
        calls: int | Sequence[float] = getattr(self, "calls", None) or 1  # None, or no such key: one call
        return calls if isinstance(calls, int) else len(calls)

    def distance_key(self) -> str:
        """The key of `distance`, for messages."""
        return "distance"

    def notes(self, phase: Phase) -> list[str]:
        """Messages about keys of a phase that have no effect; ValueError if the phase contradicts the section."""
        return []

    def batch_sizes(self) -> dict[str, int]:
        """Sizes of the batches that processes share, by key: `batch_size`, `phases[0].batch_size`."""
        size: int | None = getattr(self, "batch_size", None)
        return {} if size is None else {"batch_size": size}

    @property
    def version(self) -> int:
        """Higher when the same section gives other weights than before; then its trainings alone are made again."""
        return 1

    @property
    def denoises(self) -> bool:
        """Whether the student is a denoiser at all noise levels, which can teach another student."""
        return False

    @property
    def starts_from_pairs(self) -> bool:
        """Whether the student gets the noise of pairs, whose level is key `sigma`."""
        return False

    @property
    def random_passes(self) -> bool:
        """Whether the number of network passes of an update is drawn at random, as the trained call of several is."""
        return self.final_calls() > 1

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that have an optimiser, the student first."""
        return tuple(name for name, role in self.roles().items() if role.mode is Mode.TRAINED)

    def plan(self) -> tuple[list[PlannedPhase], list[str]]:
        """The phases that have a loss, and messages about phases and keys without effect."""
        planned: list[PlannedPhase] = []
        lines: list[str] = []
        first = 0
        for index, phase in enumerate(self.phases):
            if not self.losses(phase):
                lines.append(f"phase {index} skipped: it has no loss")
                continue
            lines += [f"phase {index}: {note}" for note in self.notes(phase)]
            planned.append(PlannedPhase(index, first, phase))
            first += phase.updates
        return planned, lines
