"""Batches of a distillation: a thread reads and draws the next one while the networks work on this one."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dmd.artifacts.pairs import PairReader
from dmd.methods.numbers import Batch, Numbers, Rows
from dmd.methods.phases import Phase, phase_of
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share

Prepared = tuple[Batch, torch.Generator]


class Feed:
    """The batch of every update, a pure function of (seed, update, manifest): a run that continues gets the same.

    Noise and labels are drawn for the whole batch, pairs are read for this process alone.
    """

    def __init__(
        self,
        reader: PairReader,
        phases: list[Phase],
        numbers: Numbers,
        share: Share,
        *,
        facts: Mapping[str, Any],
    ) -> None:
        """facts: of the teacher: shape (C, H, W) of an image, num_classes (0 gives label -1), and text where the
        condition is text states: those of random pairs."""
        self._reader, self._phases, self._numbers, self._share = reader, phases, numbers, share
        self._facts = facts
        self._total = sum(phase.updates for phase in phases)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: dict[int, Future[Prepared]] = {}

    def take(self, update: int) -> Prepared:
        """The batch of an update, and the generator that goes on from it; begins with that of the next update.

        Raises:
            ValueError: a shard is missing or differs from the manifest, whichever thread found out.
        """
        ahead = self._ahead.pop(update, None)
        found = self._prepare(update) if ahead is None else ahead.result()
        self._ahead = {}  # of another order of updates
        if update + 1 < self._total:
            self._ahead[update + 1] = self._thread.submit(self._prepare, update + 1)
        return found

    def noise(self, phase: Phase, random: torch.Generator) -> Batch:
        """Noise and labels of a matching batch; text states are those of this process's part of it."""
        num, classes = phase.numbers["matching_batch_size"], self._facts["num_classes"]
        noise = torch.randn((num, *self._facts["shape"]), generator=random)
        if "text" in self._facts:
            part = self._share.part(num)
            rows = torch.randint(phase.numbers["num_pairs"] or len(self._reader), (num,), generator=random)
            return Batch(noise, Rows(self._reader.texts(rows[part].tolist()), part.start, num))
        label = torch.randint(classes, (num,), generator=random) if classes else torch.full((num,), -1)
        return Batch(noise, label)

    def close(self) -> None:
        """Ends the thread, after the batch it works on."""
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self, update: int) -> Prepared:
        phase, random = phase_of(self._phases, update), update_generator("distill", self._numbers["seed"], update)
        batch = self.noise(phase, random)
        if not phase.regression:
            return batch, random
        num = phase.numbers["regression_batch_size"]
        part = self._share.part(num)
        position = phase.first_pair + (update - phase.first) * num + part.start
        among = phase.numbers["num_pairs"]
        noise, label, image = self._reader.batch(position, part.stop - part.start, among=among)
        pairs = Rows(noise, part.start, num), Rows(label, part.start, num), Rows(image, part.start, num)
        return Batch(batch.noise, batch.label, pairs), random
