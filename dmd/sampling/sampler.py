"""Images from seeds: denoiser, solver and device in one callable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dmd.config.sections import NUM_SEEDS
from dmd.models import loading
from dmd.models.compute import Compute, prepare
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.provenance import tensor_files
from dmd.sampling import schedulers
from dmd.sampling.default_solver import default_solver, resolve_solver
from dmd.sampling.noise import SeededDraws, check_sigma
from dmd.sampling.ode_solvers import OnStep
from dmd.sampling.solvers import solve

MAX_BATCH_SIZE = 64  # images per network call, by default

Label = int | str | Sequence[int] | Tensor | None


class Batch(NamedTuple):
    """Images of a batch of seeds, on the CPU.

    Attributes:
        noise: unit noise (B, C, H, W), float32.
        label: int64 (B,), -1 if there are no classes.
        image: float32 (B, C, H, W), about -1 to 1.
        network_calls: per image.
        trajectory: float32 (B, M, C, H, W), the states after the requested steps; None if there are none.
    """

    noise: Tensor
    label: Tensor
    image: Tensor
    network_calls: int
    trajectory: Tensor | None = None


class Sampler:
    """Draws images from a teacher or a student.

    Attributes:
        shape: (C, H, W) of an image.
        num_classes: 0 for an unconditional denoiser.
        sigma: noise level that the solver starts from.
        solver: for `dmd.sampling.solvers.solve`.
        denoiser: on its device.
        device: of the denoiser.
        metadata: of the file.
        guided: whether each call passes through the network twice, for guidance.
    """

    def __init__(
        self,
        path: Path,
        *,
        solver: dict[str, Any] | None,
        weights: str = "ema",
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        compute: Compute | None = None,
        guidance: float | None = None,
        adapter: Mapping[str, Tensor] | None = None,
        calls: int | None = None,
    ) -> None:
        """Loads a denoiser.

        Args:
            path: of its file.
            solver: see `dmd.sampling.solvers.solve`; {"name": "student"}: the calls that a student's file holds; None:
                the default of `dmd.load`.
            weights: "ema", "raw" or "best".
            guidance: 1 is none, and above 1 each call has two passes, but where the network takes the guidance as an
                input: there it is that input. None: 1, or for such a network the middle of its range.
            adapter: is added to the weights, see `dmd.models.lora.merge_adapter`.
            calls: number of network calls, for a student that supports several; None: the number at the end of its
                training.

        Raises:
            ValueError: the file is damaged, lacks these weights, is no student's file for solver student, was trained
                on lower noise than the solver's first level, has no empty condition, which guidance needs, was not
                trained on this guidance as an input, or has a scheduler that cannot make the solver's steps.
        """
        facts = dict(loading.denoiser_file(path).facts)
        solver = solver or default_solver(facts, None, None, path)
        try:
            schedulers.check(facts, solver)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        denoiser, self.metadata = loading.load_denoiser(path, weights=weights, calls=calls)
        if adapter is not None:
            loading.add_adapter(denoiser, adapter, path)
        self.device, self.batch_size = torch.device(device), batch_size
        self.denoiser = prepare(denoiser.to(self.device), compute or Compute())
        self.guided = False
        if (guidances := loading.guidance_range(self.metadata)) is not None:
            assert isinstance(self.denoiser, Denoiser)
            self.denoiser.guidance = _within(guidances, guidance, path)
        elif guidance not in (None, 1):
            self.guided = True
            empty = _empty(path, self.metadata, guidance)
            self.denoiser = with_guidance(cast(Denoiser, self.denoiser), empty, guidance)
        self.shape: tuple[int, ...] = tuple(self.metadata["shape"])
        self.num_classes: int = self.metadata["num_classes"]
        self.solver, self.sigma = resolve_solver(solver, self.metadata, path)
        check_sigma(self.metadata, self.sigma, path)

    def __call__(self, num: int = 1, *, label: Label = None, seed: int = 0) -> Tensor:
        """Images of seeds seed, seed + 1, ...: those that stage `sample` draws for these seeds and labels.

        Image i depends on seed + i only, bit for bit if `batch_size` is set, otherwise to about 1e-5.

        Args:
            num: number of images.
            label: one class for all, `num` classes, "balanced" (seed modulo number of classes), or None (each seed
                draws a class).
            seed: of the first image.

        Returns:
            float32 (num, C, H, W) in about [-1, 1], on the CPU.

        Raises:
            ValueError: labels that do not fit the classes or `num`, or a seed outside 0 .. 2**32 - num.
        """
        check_seeds(num, seed)
        fixed = None if label is None or isinstance(label, str) else self._fixed_labels(label, num)
        labels = label if isinstance(label, str) else "random"
        batches = self.batches(range(seed, seed + num), labels=labels, fixed_labels=fixed)
        return torch.cat([batch.image for batch in batches])

    def batches(
        self,
        seeds: Sequence[int],
        *,
        labels: str = "random",
        fixed_labels: Tensor | None = None,
        states: Tensor | None = None,
        trajectory_steps: Sequence[int] = (),
    ) -> Iterator[Batch]:
        """Batches in the order of `seeds`; a short last batch is padded for the network.

        Args:
            labels: how each seed draws its label, "random" or "balanced".
            fixed_labels: int64 labels, one per seed, that replace the drawn ones.
            states: text states (N, L, E), one per seed, that the network gets instead of the labels.
            trajectory_steps: steps of a solver of `SOLVERS`, from 1, whose states are returned.

        Raises:
            ValueError: images that are not finite, or text states that are missing or not needed.
        """
        if ("text" in self.metadata) != (states is not None):
            raise ValueError("states: they are needed if the condition is text, and only then")
        size = self.batch_size or min(len(seeds), MAX_BATCH_SIZE)
        for start in range(0, len(seeds), size):
            batch = list(seeds[start : start + size])
            num, padding = len(batch), [batch[-1]] * (size - len(batch))
            draws = SeededDraws(batch + padding, self.shape, num_classes=self.num_classes, labels=labels)
            noise, label = draws.noise, draws.label
            if fixed_labels is not None:
                label[:num] = fixed_labels[start : start + size]
            condition = label
            if states is not None:
                own_states = states[start : start + num]
                condition = torch.cat([own_states, own_states[-1:].expand(len(padding), -1, -1)])
            by_step: dict[int, Tensor] = {}
            image, calls = solve(
                self.denoiser,
                noise.to(self.device),
                condition.to(self.device),
                self.solver,
                lambda number, draws=draws: draws.fresh(number).to(self.device),  # type: ignore[misc]
                _saver(by_step) if trajectory_steps else None,
            )
            if not image[:num].isfinite().all():
                bad = [seed for seed, pixels in zip(batch, image, strict=False) if not pixels.isfinite().all()]
                raise ValueError(f"images of seeds {bad[:5]} are not finite: the denoiser is damaged or diverged")
            saved = [by_step[step][:num].to(noise.dtype).cpu() for step in trajectory_steps]
            trajectory = torch.stack(saved, 1) if trajectory_steps else None
            yield Batch(noise[:num], label[:num], image[:num].cpu(), calls, trajectory)

    def _fixed_labels(self, label: int | Sequence[int] | Tensor, num: int) -> Tensor:
        """int64 (num,) from one label or `num`."""
        labels = torch.as_tensor(label)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"label: {labels.dtype} is no integer type")
        labels = labels.to("cpu", torch.int64).expand(num) if labels.ndim == 0 else labels.to("cpu", torch.int64)
        if labels.shape != (num,):
            raise ValueError(f"label: shape {tuple(labels.shape)} does not fit num {num}: give one label or {num}")
        if bad := [number for number in labels.tolist() if not 0 <= number < self.num_classes]:
            classes = f"its classes are 0 .. {self.num_classes - 1}" if self.num_classes else "it has no classes"
            raise ValueError(f"label: {bad[0]} is no class of this denoiser: {classes}")
        return labels


def _saver(by_step: dict[int, Tensor]) -> OnStep:
    """Copies the state after each step into `by_step`."""

    def save(step: int, state: Tensor) -> None:
        by_step[step] = state.clone()

    return save


def check_seeds(num: int, seed: int) -> None:
    """ValueError unless num is at least 1 and seed .. seed + num - 1 lie within 0 .. 2**32 - 1."""
    if num < 1:
        raise ValueError(f"num: {num} is not at least 1")
    if not 0 <= seed <= NUM_SEEDS - num:
        raise ValueError(f"seed: {seed} is outside 0 .. {NUM_SEEDS - num}, the range for {num} images")


def load(
    path: str | Path,
    *,
    weights: str,
    device: str,
    batch_size: int | None,
    solver: str | None,
    steps: int | None,
    guidance: float | None = None,
    calls: int | None = None,
) -> Sampler:
    """See `dmd.load`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is not at least 1")
    path = Path(path)
    metadata = tensor_files.load_metadata(path)
    loading.check_facts(metadata, path)
    full_solver = default_solver(metadata, solver, steps, path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "guidance": guidance, "calls": calls}
    return Sampler(path, solver=full_solver, device=device, **options)


def _within(guidances: tuple[float, float], guidance: float | None, path: Path) -> float:
    """The guidance, None for the middle; ValueError if the network was not trained on it."""
    low, high = guidances
    if guidance is not None and not low <= guidance <= high:
        raise ValueError(f"guidance {guidance:g}: {path} takes {low:g} to {high:g} as an input, and no other")
    return (low + high) / 2 if guidance is None else guidance


def _empty(path: Path, metadata: dict[str, Any], guidance: float) -> Tensor:
    """The empty condition for guidance; ValueError for a student."""
    if metadata["kind"] == "generator":
        raise ValueError(f"guidance {guidance:g}: {path} is a student, which is sampled without guidance")
    return loading.load_empty(path)
