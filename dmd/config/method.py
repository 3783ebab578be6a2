"""What a configuration says of any method: its networks, what it reads, and its phases. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pydantic import Field

from dmd.config.section import Count, Positive, Section

WEIGHTS = ("ema", "raw")  # of a student: averaged over updates, and those of the last one
STUDENT, TEACHER = "student", "teacher"


class Mode(Enum):
    """What happens to a network in a training."""

    FROZEN = "frozen"  # stays what its file says; in no checkpoint
    TRAINED = "trained"  # has an optimiser
    COPIED = "copied"  # set by the method from others: a moving target, the teacher of a later round


class Source(Enum):
    """Where the weights of a network come from."""

    TEACHER = "teacher"  # the teacher's file
    START = "start"  # the file of `distill.start`, else the teacher's
    NEW = "new"  # random ones, of the architecture that the method makes
    STUDENT = "student"  # those that the student begins with


@dataclass(frozen=True)
class Role:
    """One network of a method. The trainer builds it; a method never copies a network itself.

    Attributes:
        guidance: classifier-free guidance that the network is asked under; 1 is none.
    """

    source: Source
    mode: Mode
    guidance: float = 1.0


class Phase(Section):
    """A stretch of a training. Methods add the keys that may change between phases."""

    updates: Count = Field(description="of the student, or of what the phase trains")
    learning_rate_scale: Positive = Field(1.0, description="factor on every learning rate")
    fresh_optimiser: bool = Field(False, description="forget the student's Adam moments first")


@dataclass(frozen=True)
class PlannedPhase:
    """A phase that has something to learn, and its place: updates first .. first + config.updates - 1.

    Attributes:
        index: its place in the list of the configuration, from 0; phases that are skipped count.
        config: its entry in the list.
    """

    index: int
    first: int
    config: Phase

    @property
    def stop(self) -> int:
        """The first update behind it."""
        return self.first + self.config.updates


class MethodSection(Section):
    """Section `method` of a training. Each method has `name`, its tag, and `phases`.

    Attributes:
        optimiser_defaults: keys of an optimiser by role, where the method's differ from the general ones; those of the
            student are every role's that has none of its own.
        schedule_defaults: keys of the schedule, where the method's differ from the general ones.
        refuses: switches of `compute` that the method cannot take away from their defaults, or "adapter".
    """

    optimiser_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    schedule_defaults: ClassVar[Mapping[str, Any]] = {}
    refuses: ClassVar[tuple[str, ...]] = ()
    name: str
    phases: Sequence[Phase]

    def roles(self) -> dict[str, Role]:
        """The networks by name; `student` is averaged and exported."""
        raise NotImplementedError

    def reads(self) -> frozenset[str]:
        """Streams besides noise that this configuration reads in any phase: pairs, images."""
        return frozenset()

    def losses(self, phase: Phase) -> frozenset[str]:
        """Names of the losses that a phase has; one without any is skipped."""
        return frozenset({STUDENT})

    def distance(self) -> Section | None:
        """The section of the distance of images that losses use, None where they use none."""
        return None

    def decoders(self) -> tuple[str, ...]:
        """Decoders of latents that the distance goes through in some phase, in order of first use; "none" is one."""
        return ()

    def calls_kept(self) -> dict[int, tuple[str, ...]]:
        """Weights that the student's file holds, by the number of network calls that it can be sampled with."""
        return {1: WEIGHTS}

    def distance_key(self) -> str:
        """The key of `distance`, for messages."""
        return "distance"

    def notes(self, phase: Phase) -> list[str]:
        """Lines on what a phase asks for and does not get. ValueError if it contradicts the section."""
        return []

    def batch_sizes(self) -> dict[str, int]:
        """Sizes of the batches that processes share, by the key of each: `batch_size`, `phases[0].batch_size`."""
        size: int | None = getattr(self, "batch_size", None)
        return {} if size is None else {"batch_size": size}

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that have an optimiser, the student first."""
        return tuple(name for name, role in self.roles().items() if role.mode is Mode.TRAINED)

    def plan(self) -> tuple[list[PlannedPhase], list[str]]:
        """The phases that have something to learn, and lines that name what is not used."""
        planned: list[PlannedPhase] = []
        lines: list[str] = []
        first = 0
        for index, phase in enumerate(self.phases):
            if not self.losses(phase):
                lines.append(f"phase {index} skipped: no loss is left in it")
                continue
            lines += [f"phase {index}: {note}" for note in self.notes(phase)]
            planned.append(PlannedPhase(index, first, phase))
            first += phase.updates
        return planned, lines
