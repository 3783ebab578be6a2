"""Measures a student during its training against images of its teacher, and keeps its best weights.

The student draws with its moving average, from fixed noise and conditions; the teacher draws once, before the first
update, from the same. `update_interval` keeps both within `SHARE` of the network passes of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dmd.config import training as sections
from dmd.jobs import reporting
from dmd.metrics import teacher_comparison as comparison
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling.noise import seeded_draws
from dmd.train import sharding, state
from dmd.train.image_measures import ImageMeasures, operations
from dmd.train.teacher_images import TeacherImages
from dmd.train.trainer import Trainer

SHARE = 0.015  # of the network passes of a training; what is no pass makes it up to 2 % of the time
MOST = 50  # measurements
FIRST_SEED = 3 * 2**30  # of the noise: neither that of pairs nor that of samples, by their defaults
NUMBERS = {"distance": comparison.FEATURES, "same_noise": comparison.SAME_NOISE, "clip": comparison.CLIP}


def update_interval(total: int, *, training: float, teacher: float, once: float) -> int:
    """Updates between two measurements, of which there is at least one, after the last update.

    Args:
        total: updates of the training.
        training: network passes of the training.
        teacher: passes for the images of the teacher.
        once: passes of one measurement, mean over the training.
    """
    affordable = int((SHARE * training - teacher) / once) if once else MOST
    return -(-total // max(1, min(affordable, MOST, total)))


@dataclass(frozen=True)
class Conditions:
    """The images of a measurement: image i has seed `FIRST_SEED` + i and condition i modulo `num`.

    Attributes:
        label: labels int64 (N,), or text states (N, L, E).
        prompt: rows of the prompts, int64 (N,).
    """

    num: int
    label: Tensor
    prompt: Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def seeds(self) -> range:
        """Of the noise."""
        return range(FIRST_SEED, FIRST_SEED + len(self))


def conditions(
    config: sections.Monitor, num_classes: int, texts: Callable[[int], Tensor] | None, num_texts: int
) -> Conditions:
    """Classes evenly spaced over all, or the first prompts; images without either have one condition.

    Args:
        texts: num -> text states (num, L, E), if the condition is text.
    """
    most = num_texts if texts is not None else max(num_classes, 1)
    num = min(config.num_images // config.seeds, most)
    index = torch.arange(config.num_images // num * num) % num
    if texts is not None:
        return Conditions(num, texts(num)[index], index)
    label = index * num_classes // num if num_classes else torch.full_like(index, -1)
    return Conditions(num, label, index)


@dataclass
class Best:
    """The best weights so far: those of the moving average, or of its adapter, on the CPU.

    Attributes:
        update: number of updates before them.
        value: the number by which they are the best.
        weights: empty if there are none yet.
    """

    update: int = 0
    value: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict)


class Monitor:
    """Measures a student.

    Attributes:
        every: updates between two measurements; `start` sets it.
        best: the best weights so far.
        measures: what is measured of images, with the decoder of latents.
    """

    def __init__(
        self,
        config: sections.Monitor,
        trainer: Trainer,
        conditions: Conditions,
        measures: ImageMeasures,
        teacher_images: TeacherImages,
        final_calls: Calls,
    ) -> None:
        """final_calls: those of the student at the end of training; only with these can weights be the best."""
        self.config, self._trainer, self._conditions, self.measures = config, trainer, conditions, measures
        self._teacher_images, self._final = teacher_images, final_calls
        self._teacher = torch.zeros(0, 0, dtype=torch.float64)  # rows of `ImageMeasures`
        self._teacher_passes = 0
        self.every, self.best = 0, Best()
        if config.best == "same_noise" and not self._same_noise(final_calls):
            raise ValueError(
                "distill.monitor.best: same_noise, but the student does not start from the noise level of the teacher, "
                "or makes several calls: take distance"
            )

    def count_passes(self) -> None:
        """Sets how many passes of the student's network measuring one image costs; before `Trainer.start`."""
        networks, facts = self._trainer.networks, self._trainer.method.facts
        label = self._conditions.label[:1].to(networks.device)
        image = torch.zeros(1, *facts.shape, device=networks.device)
        with torch.no_grad(), networks.averaged_student() as student:
            once = operations(lambda: student(image, image.new_ones(1), label))
        self._own_passes = self.measures.operations(facts.shape) / max(once, 1)

    def start(self, total: int, *, training_passes: int) -> None:
        """Draws the teacher's images, unless a checkpoint had what is measured of them, and sets `every`.

        Args:
            total: updates of the training.
            training_passes: see `dmd.train.measured_update.total_passes`.
        """
        if not len(self._teacher):
            self._teacher = self._rows(self._draw_teacher)
        num, own = len(self._conditions), self._own_passes
        once, teacher = num * (self._mean_calls() + own), num * (self._teacher_passes + own)
        interval = update_interval(total, training=training_passes, teacher=teacher, once=once)
        self.every = self.config.every or interval
        share = (teacher + -(-total // self.every) * once) / max(training_passes, 1)
        per_condition = num // self._conditions.num
        reporting.log(
            f"monitor: {num} images, {per_condition} of each of {self._conditions.num} conditions, every {self.every} "
            f"updates: {100 * share:.2g} % of the network passes of the training"
        )

    def _mean_calls(self) -> float:
        """Network calls of the student, mean over updates: its number may differ between phases."""
        method, (phases, _) = self._trainer.method, self._trainer.training.method.plan()
        total = 0
        for phase in phases:
            method.configure(phase)
            total += phase.config.updates * len(method.sampling().sigmas)
        self._trainer.forget_phase()
        return total / phases[-1].stop

    def due(self, done: int, total: int) -> bool:
        """Whether to measure after `done` updates."""
        return done % self.every == 0 or done == total

    def measure(self, done: int) -> dict[str, float]:
        """Columns of the log after `done` updates; all processes call it together and get the same."""
        calls = self._trainer.method.sampling()
        rows = self._rows(lambda indices: self._draw_student(calls, indices))
        student = self.measures.image_set(rows, num_conditions=self._conditions.num)
        columns = self._agree(comparison.compare(student, self._teacher_set, same_noise=self._same_noise(calls)))
        self._keep_best(columns, calls, done)
        return columns

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        numbers = [float(self._teacher_passes), float(self.best.update), self.best.value]
        return {
            "teacher": self._teacher,
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            **{f"best.{name}": value for name, value in self.best.weights.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets what `state` returned; ValueError for anything else."""
        own = ("teacher", "numbers")
        if odd := sorted(name for name in tensors if name not in own and not name.startswith("best.")):
            raise ValueError(f"monitor.{odd[0]} is unknown")
        if missing := [name for name in own if name not in tensors]:
            raise ValueError(f"monitor.{missing[0]} is missing")
        rows, numbers = tensors["teacher"], tensors["numbers"]
        if rows.ndim != 2:
            raise ValueError(f"monitor.teacher has {rows.ndim} axes, not 2")
        sharding.check_like("monitor.teacher", rows, torch.empty(len(self._conditions), rows.shape[1]).double())
        sharding.check_like("monitor.numbers", numbers, torch.empty(3).double())
        passes, update, value = numbers.tolist()
        weights = tensor_files.part("best.", tensors)
        state.check_weights("monitor.best", weights, self._like() if update or weights else {})
        self._teacher, self._teacher_passes = rows, int(passes)
        self.best = Best(int(update), value, weights)

    @cached_property
    def _teacher_set(self) -> comparison.ImageSet:
        """The teacher's images; its numbers are computed once."""
        return self.measures.image_set(self._teacher, num_conditions=self._conditions.num)

    def _like(self) -> dict[str, Tensor]:
        return self._trainer.networks.average.module.state_dict()

    def _rows(self, draw: Callable[[list[int]], Iterator[Tensor]]) -> Tensor:
        """Rows of all images; every process draws an equal part of them."""
        split, num = self._trainer.split, len(self._conditions)
        part = -(-num // split.processes)
        own = [index % num for index in range(split.rank * part, (split.rank + 1) * part)]
        measured: list[Tensor] = []
        self.measures.use(self.measures.device)
        for image in draw(own):
            first = sum(map(len, measured))
            prompt = self._conditions.prompt[own[first : first + len(image)]]
            measured.append(self.measures(image.to(self.measures.device), prompt))
        self.measures.use(torch.device("cpu"))
        mine = torch.cat(measured)[: max(min(part, num - split.rank * part), 0)]
        rows = mine.new_zeros(num, mine.shape[1])
        rows[split.rank * part : split.rank * part + len(mine)] = mine
        return self._add_up(rows)

    def _add_up(self, values: Tensor) -> Tensor:
        """The sum over processes of values on the CPU."""
        return self._trainer.split.add_up(values.to(self._trainer.networks.device)).cpu()

    def _agree(self, columns: dict[str, float]) -> dict[str, float]:
        """The first process's columns, in every process: another processor may round differently."""
        values = torch.tensor([*columns.values()], dtype=torch.float64)
        shared = self._add_up(values if self._trainer.split.rank == 0 else torch.zeros_like(values))
        return dict(zip(columns, shared.tolist(), strict=True))

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        size = self._trainer.pass_size()
        for first in range(0, len(indices), size):
            yield indices[first : first + size]

    def _draw_teacher(self, indices: list[int]) -> Iterator[Tensor]:
        seeds = [self._conditions.seeds[index] for index in indices]
        for image, passes in self._teacher_images(seeds, self._conditions.label[indices]):
            self._teacher_passes = passes
            yield image

    def _draw_student(self, calls: Calls, indices: list[int]) -> Iterator[Tensor]:
        networks, facts = self._trainer.networks, self._trainer.method.facts
        with networks.averaged_student() as student:
            for batch in self._batches(indices):
                seeds = [self._conditions.seeds[index] for index in batch]
                noise, _, fresh = seeded_draws(seeds, facts.shape, num_classes=0, num_fresh=calls.num_fresh)
                label = self._conditions.label[batch].to(networks.device)
                on_device = [further.to(networks.device) for further in fresh]
                yield calls.draw(student, noise.to(networks.device), label, on_device.__getitem__)

    def _same_noise(self, calls: Calls) -> bool:
        """Whether the student makes one call, from the noise level where the teacher starts."""
        return len(calls.sigmas) == 1 and math.isclose(calls.sigmas[0], self._teacher_images.sigma, rel_tol=0.01)

    def _keep_best(self, columns: Mapping[str, float], calls: Calls, done: int) -> None:
        """Copies the moving average if it is the best so far."""
        if self.config.best is None or calls != self._final:
            return
        value = columns.get(NUMBERS[self.config.best], math.nan)
        better = value > self.best.value if self.config.best == "clip" else value < self.best.value
        if better or math.isnan(self.best.value):
            weights = {name: sharding.gather(tensor).clone() for name, tensor in self._like().items()}
            self.best = Best(done, value, weights)
