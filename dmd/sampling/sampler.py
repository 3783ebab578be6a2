"""Images from seeds: a denoiser file, its solver and a device in one callable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dmd.config.sections import NUM_SEEDS
from dmd.models import loading
from dmd.models.calls import Calls
from dmd.models.compute import Compute, prepare
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import guided
from dmd.provenance import tensors as tensor_files
from dmd.sampling.default_solver import chosen, with_sigma
from dmd.sampling.noise import seeded_draws
from dmd.sampling.solvers import Keep, solve

MOST_AT_ONCE = 64  # images per network call, where nobody chose

Label = int | str | Sequence[int] | Tensor | None


class Batch(NamedTuple):
    """What one batch of seeds gave, on the CPU.

    Attributes:
        noise: unit noise (B, C, H, W), float32.
        label: int64 (B,), -1 where there are no classes.
        image: float32 (B, C, H, W), about -1 to 1.
        network_calls: that each image took.
        trajectory: float32 (B, M, C, H, W), the states after the steps that were asked for; None where none were.
    """

    noise: Tensor
    label: Tensor
    image: Tensor
    network_calls: int
    trajectory: Tensor | None = None


class Sampler:
    """Draws images of a teacher or a student.

    Attributes:
        shape: (C, H, W) of an image.
        num_classes: 0 where it knows none.
        sigma: noise level that drawing starts from.
        solver: as `dmd.sampling.solvers.solve` takes it.
        denoiser: on its device.
        device: where the network works.
        metadata: of the file.
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
        guidance: float = 1.0,
        adapter: Mapping[str, Tensor] | None = None,
        calls: int | None = None,
    ) -> None:
        """Reads `path`; solver student makes the calls that the student was distilled for, None is the one of `load`.

        An `adapter`, as `dmd.models.lora.merged` takes it, is added to the weights. Of a student of several numbers
        of calls, `calls` names one; None is the number that its training ended with.

        Raises:
            ValueError: the file is damaged, holds no such weights, is no student though one is asked for,
                knows no noise level as large as the solver's, or no empty prompt, which guidance above 1 needs.
        """
        denoiser, self.metadata = loading.load_denoiser(path, weights=weights, calls=calls)
        if adapter is not None:
            loading.add_adapter(denoiser, adapter, path)
        self.device, self.batch_size = torch.device(device), batch_size
        self.denoiser = prepare(denoiser.to(self.device), compute or Compute())
        if guidance != 1:
            empty = _empty(path, self.metadata, guidance)
            self.denoiser = guided(cast(Denoiser, self.denoiser), empty, guidance)
        self.shape: tuple[int, ...] = tuple(self.metadata["shape"])
        self.num_classes: int = self.metadata["num_classes"]
        self.solver, self.sigma = with_sigma(solver or chosen(self.metadata, None, None, path), self.metadata, path)
        loading.check_noise_scale(self.metadata, self.sigma, path)
        calls = self.solver.get("calls")
        self._num_fresh = Calls.of(calls).num_fresh if calls else 0

    def __call__(self, num: int = 1, *, label: Label = None, seed: int = 0) -> Tensor:
        """Images of seeds seed, seed + 1, ..., the same ones that stage `sample` draws of them.

        Image i depends on seed + i alone, bit for bit where `batch_size` is given, otherwise to about 1e-5.

        Args:
            num: how many.
            label: one class for all, `num` classes, "balanced" (seed modulo classes), or None: each seed draws its own.
            seed: of the first image.

        Returns:
            float32 (num, C, H, W) in about [-1, 1], on the CPU.

        Raises:
            ValueError: labels that do not fit the classes or `num`, or a seed outside 0 .. 2**32 - num.
        """
        check_seeds(num, seed)
        given = None if label is None or isinstance(label, str) else self._given(label, num)
        labels = label if isinstance(label, str) else "random"
        batches = self.batches(range(seed, seed + num), labels=labels, given=given)
        return torch.cat([batch.image for batch in batches])

    def batches(
        self,
        seeds: Sequence[int],
        *,
        labels: str = "random",
        given: Tensor | None = None,
        states: Tensor | None = None,
        kept_steps: Sequence[int] = (),
    ) -> Iterator[Batch]:
        """Batches in the order of `seeds`; a short last batch is padded while it is drawn.

        Args:
            labels: how each seed draws its label, "random" or "balanced".
            given: int64 labels, one per seed, that replace those drawn.
            states: text states (N, L, E), one per seed, that the network sees in place of the labels.
            kept_steps: steps of a solver heun or euler, from 1, after which the state is kept.

        Raises:
            ValueError: images that are not finite, or a network of text without text states.
        """
        if ("text" in self.metadata) != (states is not None):
            raise ValueError("a denoiser draws of text states exactly where its condition is text")
        size = self.batch_size or min(len(seeds), MOST_AT_ONCE)
        for start in range(0, len(seeds), size):
            some = list(seeds[start : start + size])
            num, padding = len(some), [some[-1]] * (size - len(some))
            noise, label, fresh = seeded_draws(
                some + padding, self.shape, num_classes=self.num_classes, labels=labels, num_fresh=self._num_fresh
            )
            if given is not None:
                label[:num] = given[start : start + size]
            condition = label
            if states is not None:
                given_states = states[start : start + num]
                condition = torch.cat([given_states, given_states[-1:].expand(len(padding), -1, -1)])
            further = [each.to(self.device) for each in fresh]
            given_noise, given_condition = noise.to(self.device), condition.to(self.device)
            kept: dict[int, Tensor] = {}
            image, calls = solve(
                self.denoiser,
                given_noise,
                given_condition,
                self.solver,
                further.__getitem__,
                _keeper(kept) if kept_steps else None,
            )
            if not image[:num].isfinite().all():
                bad = [one for one, pixels in zip(some, image, strict=False) if not pixels.isfinite().all()]
                raise ValueError(f"images of seeds {bad[:5]} are not finite: the denoiser is damaged or diverged")
            after = [kept[step][:num].to(noise.dtype).cpu() for step in kept_steps]
            trajectory = torch.stack(after, 1) if kept_steps else None
            yield Batch(noise[:num], label[:num], image[:num].cpu(), calls, trajectory)

    def _given(self, label: int | Sequence[int] | Tensor, num: int) -> Tensor:
        """int64 (num,) from one label or many."""
        found = torch.as_tensor(label)
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise ValueError(f"label: {found.dtype} is no integer type")
        found = found.to("cpu", torch.int64).expand(num) if found.ndim == 0 else found.to("cpu", torch.int64)
        if found.shape != (num,):
            raise ValueError(f"label: shape {tuple(found.shape)} does not fit num {num}: give one label or {num}")
        if bad := [one for one in found.tolist() if not 0 <= one < self.num_classes]:
            known = f"0 .. {self.num_classes - 1}" if self.num_classes else "none, it was made without"
            raise ValueError(f"label: {bad[0]} is no class of this denoiser; its classes are {known}")
        return found


def _keeper(kept: dict[int, Tensor]) -> Keep:
    """Copies the state after each step into `kept`."""

    def keep(step: int, state: Tensor) -> None:
        kept[step] = state.clone()

    return keep


def check_seeds(num: int, seed: int) -> None:
    """ValueError unless `num` images can be drawn of seeds from `seed` on."""
    if num < 1:
        raise ValueError(f"num: {num} images cannot be drawn, at least 1 can")
    if not 0 <= seed <= NUM_SEEDS - num:
        raise ValueError(f"seed: {seed} is outside 0 .. {NUM_SEEDS - num}, where {num} images have seeds of their own")


def load(
    path: str | Path,
    *,
    weights: str,
    device: str,
    batch_size: int | None,
    solver: str | None,
    steps: int | None,
    guidance: float = 1.0,
    calls: int | None = None,
) -> Sampler:
    """See `dmd.load`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} images cannot be drawn at once, at least 1 can")
    path = Path(path)
    metadata = tensor_files.load_metadata(path)
    loading.check_facts(metadata, path)
    wanted = chosen(metadata, solver, steps, path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "guidance": guidance, "calls": calls}
    return Sampler(path, solver=wanted, device=device, **numbers)


def _empty(path: Path, metadata: dict[str, Any], guidance: float) -> Tensor:
    """Text states (L, E) of the empty prompt, which guidance leads away from."""
    if metadata["kind"] == "generator":
        raise ValueError(f"guidance {guidance:g}: {path} is a student, which is drawn without")
    return loading.load_empty(path)
