"""Data rows of every update. A thread prepares the rows of the next update while the current update runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import update_generator


@dataclass(frozen=True)
class PreparedStep:
    """A step, with this process's rows of each part by name, on the CPU."""

    step: Step
    rows: Mapping[str, Rows]


class Stream(Protocol):
    """A source of rows. It draws random numbers for the whole batch, so they do not depend on a process's slice."""

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """Rows mine.start .. mine.stop - 1 of a part, by field.

        Args:
            part: the part; its `size` counts the rows of all processes.
            position: number of rows of this stream that earlier parts have used.
            mine: this process's rows within the part.
            random: random generator of the update.
        """


class Texts(Protocol):
    """A source of text states; see `dmd.data.pairs`."""

    def __len__(self) -> int: ...

    def texts(self, rows: Iterable[int]) -> Tensor: ...


class Pairs(Texts, Protocol):
    """The source of a stream of pairs; see `dmd.data.pairs.PairReader`."""

    def batch(
        self, position: int, num: int, *, among: int | None = None, last: str = "image"
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Images(Protocol):
    """The source of a stream of images; see `dmd.data.image_shards.ImageReader`."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoiseStream:
    """Unit noise with uniformly drawn labels, or with uniformly drawn text states if the condition is text."""

    facts: Facts
    texts: Texts | None = None

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """noise (b, C, H, W); label int64 (b,), or text states float32 (b, L, E)."""
        noise = torch.randn((part.size, *self.facts.shape), generator=random)[mine]
        if self.texts is not None:
            rows = torch.randint(part.among or len(self.texts), (part.size,), generator=random)
            return {"noise": noise, "label": self.texts.texts(rows[mine].tolist())}
        classes = self.facts.num_classes
        label = torch.randint(classes, (part.size,), generator=random) if classes else torch.full((part.size,), -1)
        return {"noise": noise, "label": label[mine]}


@dataclass(frozen=True)
class PairStream:
    """Pairs in a shuffled order that depends on the seed alone."""

    reader: Pairs

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """noise and image (b, C, H, W); label int64 (b,), or text states float32 (b, L, E)."""
        first, num = position + mine.start, mine.stop - mine.start
        noise, label, image = self.reader.batch(first, num, among=part.among)
        return {"noise": noise, "label": label, "image": image}


@dataclass(frozen=True)
class TrajectoryStream:
    """Pairs with the states of their trajectories in place of the image, in the order of `PairStream`.

    Attributes:
        levels: noise level of each state; the last one, 0, is that of the image.
    """

    reader: Pairs
    levels: tuple[float, ...]

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """noise (b, C, H, W), label as in `PairStream`, trajectory (b, M, C, H, W) and levels (b, M)."""
        first, num = position + mine.start, mine.stop - mine.start
        noise, label, states = self.reader.batch(first, num, among=part.among, last="trajectory")
        levels = torch.tensor(self.levels, dtype=torch.float32).expand(num, -1)
        return {"noise": noise, "label": label, "trajectory": states, "levels": levels}


@dataclass(frozen=True)
class ImageStream:
    """Images drawn uniformly, with replacement."""

    images: Images

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """image float32 (b, C, H, W) in [-1, 1]; label int64 (b,), -1 where there are no classes.

        Of a part with groups, image (b, group, C, H, W) and label (b, group).
        """
        indices = torch.randint(len(self.images), (part.size * part.group,), generator=random)
        indices = indices[mine.start * part.group : mine.stop * part.group]
        label = self.images.labels[indices] if self.images.num_classes else torch.full((len(indices),), -1)
        rows = {"image": self.images.batch(indices), "label": label}
        return rows if part.group == 1 else {name: each.unflatten(0, (-1, part.group)) for name, each in rows.items()}


class BatchLoader:
    """Rows of every update: a pure function of (stage, seed, update, data), also in a resumed run."""

    def __init__(
        self,
        method: Method[Any],
        streams: Mapping[str, Stream],
        clock: Callable[[int], Clock],
        *,
        total: int,
        stage: str,
        seed: int,
        split: BatchSplit,
    ) -> None:
        """
        Args:
            streams: by name, as in `Part.stream`.
            clock: update -> Clock.
            total: number of updates.
            stage: its name; all random numbers are a function of stage, seed and update.
        """
        self._method, self._streams, self._clock, self._total = method, dict(streams), clock, total
        self._stage, self._seed, self._split = stage, seed, split
        self._positions: tuple[int, dict[str, int]] = (0, {})  # an update; rows of each stream used before it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: dict[int, Future[list[PreparedStep]]] = {}

    def take(self, update: int) -> list[PreparedStep]:
        """The steps of an update with their rows; the thread then prepares the next update.

        Raises:
            ValueError: a shard is missing or differs from the manifest.
        """
        ahead = self._ahead.pop(update, None)
        for other in self._ahead.values():  # prepared for an update that is not the one asked for
            other.cancel() or other.exception()
        self._ahead = {}
        prepared = self._prepare(update) if ahead is None else ahead.result()
        if update + 1 < self._total:
            self._ahead[update + 1] = self._thread.submit(self._prepare, update + 1)
        return prepared

    def close(self) -> None:
        """Ends the thread after the update that it is preparing."""
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self, update: int) -> list[PreparedStep]:
        clock = self._clock(update)
        positions = dict(self._position(update))
        random = update_generator(self._stage, self._seed, update)
        prepared = []
        for step in type(self._method).steps(self._method.config, clock):
            rows: dict[str, Rows] = {}
            for part in step.parts:
                rows[part.name] = {}
                if part.stream is not None:
                    position = positions.get(part.stream, 0)
                    mine = self._split.part(part.size)
                    rows[part.name] = self._streams[part.stream].rows(part, position, mine, random)
                    positions[part.stream] = position + part.size
            drawn = self._method.draw(step, clock, random)
            for part in step.parts:
                mine = self._split.part(part.size)
                rows[part.name] |= {name: values[mine] for name, values in drawn.get(part.name, {}).items()}
            prepared.append(PreparedStep(step, rows))
        return prepared

    def _position(self, update: int) -> Mapping[str, int]:
        """Number of rows of each stream that the updates before `update` used."""
        known, positions = self._positions
        if known > update:
            known, positions = 0, {}
        positions = dict(positions)
        for before in range(known, update):
            for step in type(self._method).steps(self._method.config, self._clock(before)):
                for part in step.parts:
                    if part.stream is not None:
                        positions[part.stream] = positions.get(part.stream, 0) + part.size
        self._positions = update, positions
        return positions
