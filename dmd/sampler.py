"""Images from seeds: a denoiser file, its solver and a device in one callable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd import loading
from dmd.artifacts import tensors as tensor_files
from dmd.checks import NUM_SEEDS
from dmd.diffusion.compute import Compute, prepare
from dmd.diffusion.noise import seeded_noise
from dmd.diffusion.solver import SOLVERS, solve

MOST_AT_ONCE = 64  # images per network call, where nobody chose
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}  # of EDM (Karras et al. 2022, Table 1)

Label = int | str | Sequence[int] | Tensor | None


class Batch(NamedTuple):
    """What one batch of seeds gave, on the CPU.

    Attributes:
        noise: unit noise (B, C, H, W), float32.
        label: int64 (B,), -1 where there are no classes.
        image: float32 (B, C, H, W), about -1 to 1.
        network_calls: that each image took.
    """

    noise: Tensor
    label: Tensor
    image: Tensor
    network_calls: int


class Sampler:
    """Draws images of a teacher or a one-step generator.

    Attributes:
        shape: (C, H, W) of an image.
        num_classes: 0 where it knows none.
        sigma: noise level that drawing starts from.
        solver: as `dmd.diffusion.solver.solve` takes it.
        denoiser: on its device.
        device: where the network works.
        metadata: of the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        solver: dict[str, Any],
        weights: str = "ema",
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        compute: Compute | None = None,
    ) -> None:
        """Reads `path`; a solver one-step without sigma takes the one the generator was distilled at.

        Raises:
            ValueError: the file is damaged, holds no such weights, is no generator though one step is asked for, or
                knows no noise level as large as the solver's.
        """
        denoiser, self.metadata = loading.load_denoiser(path, weights=weights)
        self.device, self.batch_size = torch.device(device), batch_size
        self.denoiser = prepare(denoiser.to(self.device), compute or Compute())
        self.shape: tuple[int, ...] = tuple(self.metadata["shape"])
        self.num_classes: int = self.metadata["num_classes"]
        self.solver = _with_sigma(solver, self.metadata, path)
        self.sigma: float = self.solver["sigma" if self.solver["name"] == "one-step" else "sigma_max"]
        loading.check_noise_scale(self.metadata, self.sigma, path)

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
        if num < 1:
            raise ValueError(f"num: {num} images cannot be drawn, at least 1 can")
        if not 0 <= seed <= NUM_SEEDS - num:
            raise ValueError(
                f"seed: {seed} is outside 0 .. {NUM_SEEDS - num}, where {num} images have seeds of their own"
            )
        given = None if label is None or isinstance(label, str) else self._given(label, num)
        labels = label if isinstance(label, str) else "random"
        batches = self.batches(range(seed, seed + num), labels=labels, given=given)
        return torch.cat([batch.image for batch in batches])

    def batches(self, seeds: Sequence[int], *, labels: str = "random", given: Tensor | None = None) -> Iterator[Batch]:
        """Batches in the order of `seeds`; a short last batch is padded while it is drawn.

        Args:
            labels: how each seed draws its label, "random" or "balanced".
            given: int64 labels, one per seed, that replace those drawn.

        Raises:
            ValueError: images that are not finite.
        """
        size = self.batch_size or min(len(seeds), MOST_AT_ONCE)
        for start in range(0, len(seeds), size):
            chosen = list(seeds[start : start + size])
            num, padding = len(chosen), [chosen[-1]] * (size - len(chosen))
            noise, label = seeded_noise(chosen + padding, self.shape, num_classes=self.num_classes, labels=labels)
            if given is not None:
                label[:num] = given[start : start + size]
            image, calls = solve(self.denoiser, noise.to(self.device), label.to(self.device), self.solver)
            if not image[:num].isfinite().all():
                bad = [one for one, pixels in zip(chosen, image, strict=False) if not pixels.isfinite().all()]
                raise ValueError(f"images of seeds {bad[:5]} are not finite: the denoiser is damaged or diverged")
            yield Batch(noise[:num], label[:num], image[:num].cpu(), calls)

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


def load(
    path: str | Path, *, weights: str, device: str, batch_size: int | None, solver: str | None, steps: int | None
) -> Sampler:
    """See `dmd.load`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} images cannot be drawn at once, at least 1 can")
    path = Path(path)
    chosen = _solver(tensor_files.load_metadata(path), solver, steps, path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Sampler(path, solver=chosen, weights=weights, device=device, batch_size=batch_size)


def _solver(metadata: dict[str, Any], name: str | None, steps: int | None, path: Path) -> dict[str, Any]:
    """One step for a generator; for a teacher Heun in 18 steps (35 calls), within the noise levels it was made for."""
    if metadata["kind"] == "generator":
        if steps is not None or name not in (None, "one-step"):
            raise ValueError(f"{path} is a one-step generator: solver {name!r} and steps {steps} are for teachers")
        return {"name": "one-step"}
    if name not in (None, *SOLVERS):
        raise ValueError(f"solver {name!r}: {path} is a teacher, it takes one of {list(SOLVERS)}")
    low = max(GRID["sigma_min"], metadata.get("sigma_min") or 0.0)
    high = min(GRID["sigma_max"], metadata.get("sigma_max") or float("inf"))
    return {
        "name": name or "heun",
        "steps": 18 if steps is None else steps,
        **GRID,
        "sigma_min": low,
        "sigma_max": high,
    }


def _with_sigma(solver: dict[str, Any], metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    if solver["name"] != "one-step" or "sigma" in solver:
        return solver
    if "sigma" not in metadata:
        raise ValueError(f"{path} is no generator: solver one-step needs the sigma it was distilled at")
    return {**solver, "sigma": metadata["sigma"]}
