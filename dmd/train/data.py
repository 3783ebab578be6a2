"""Rows of every update: a thread reads and draws those of the next one while the networks work on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step
from dmd.train.parallel import BatchSplit
from dmd.train.schedule import update_generator


@dataclass(frozen=True)
class PreparedStep:
    """A step, and this process's rows of each of its parts by name, on the CPU."""

    step: Step
    rows: Mapping[str, Rows]


class Stream(Protocol):
    """Where rows come from. Random numbers are drawn for the whole batch, whatever part of it is wanted."""

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """Rows mine.start .. mine.stop - 1 of a part.

        Args:
            part: what is wanted, `size` rows in all.
            position: rows that earlier parts took of this stream.
            mine: places of this process.
            random: of the update.
        """


class Texts(Protocol):
    """What conditions of text are read from, see `dmd.data.pairs`."""

    def __len__(self) -> int: ...

    def texts(self, rows: Iterable[int]) -> Tensor: ...


class Pairs(Texts, Protocol):
    """What a stream of pairs reads from, see `dmd.data.pairs.PairReader`."""

    def batch(
        self, position: int, num: int, *, among: int | None = None, last: str = "image"
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Images(Protocol):
    """What a stream of images reads from, see `dmd.data.dataset.Dataset`."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoiseStream:
    """Unit noise, and a label drawn uniformly; where the condition is text, random text states."""

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
    """Pairs in a shuffled order that depends on the seed alone; `last` is "image", or "trajectory" for all states."""

    reader: Pairs
    last: str = "image"

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """noise (b, C, H, W); label int64 (b,), or text states float32 (b, L, E); image, or trajectory."""
        first, num = position + mine.start, mine.stop - mine.start
        noise, label, values = self.reader.batch(first, num, among=part.among, last=self.last)
        return {"noise": noise, "label": label, self.last: values}


@dataclass(frozen=True)
class ImageStream:
    """Images drawn uniformly, each draw anew."""

    images: Images

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """image float32 (b, C, H, W) in [-1, 1]; label int64 (b,), -1 where there are no classes."""
        indices = torch.randint(len(self.images), (part.size,), generator=random)[mine]
        label = self.images.labels[indices] if self.images.num_classes else torch.full((len(indices),), -1)
        return {"image": self.images.batch(indices), "label": label}


class BatchLoader:
    """The rows of every update, a pure function of (stage, seed, update, data): a run that resumes gets the same."""

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
            streams: by the names that parts say.
            clock: update -> Clock.
            total: number of updates.
            stage: name of the stage, which with seed and update decides all random numbers.
        """
        self._method, self._streams, self._clock, self._total = method, dict(streams), clock, total
        self._stage, self._seed, self._split = stage, seed, split
        self._positions: tuple[int, dict[str, int]] = (0, {})  # update, and rows that all before it took
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: dict[int, Future[list[PreparedStep]]] = {}

    def take(self, update: int) -> list[PreparedStep]:
        """The steps of an update with their rows; begins with those of the next update.

        Raises:
            ValueError: a shard is missing or differs from the manifest, whichever thread found out.
        """
        ahead = self._ahead.pop(update, None)
        for other in self._ahead.values():  # of another order of updates
            other.cancel() or other.exception()
        self._ahead = {}
        found = self._prepare(update) if ahead is None else ahead.result()
        if update + 1 < self._total:
            self._ahead[update + 1] = self._thread.submit(self._prepare, update + 1)
        return found

    def close(self) -> None:
        """Ends the thread, after the update it works on."""
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
                    taken = positions.get(part.stream, 0)
                    mine = self._split.part(part.size)
                    rows[part.name] = self._streams[part.stream].rows(part, taken, mine, random)
                    positions[part.stream] = taken + part.size
            drawn = self._method.draw(step, clock, random)
            for part in step.parts:
                mine = self._split.part(part.size)
                rows[part.name] |= {name: values[mine] for name, values in drawn.get(part.name, {}).items()}
            prepared.append(PreparedStep(step, rows))
        return prepared

    def _position(self, update: int) -> Mapping[str, int]:
        """Rows of each stream that the updates before `update` took."""
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
