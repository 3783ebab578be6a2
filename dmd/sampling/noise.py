"""Noise levels, and noise of which each item depends on its own seed only."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dmd.config.section_base import SIGMA_MAX, SIGMA_MIN

ROUNDING = 1e-5  # a level of the configuration may be the teacher's to six digits, as the log shows it


def level_range(
    sigma_min: float | None, sigma_max: float | None, *, trained: tuple[float, float], key: str, teacher: object
) -> tuple[float, float]:
    """The lowest and highest of the noise levels that a section asks for; None is EDM's, limited to the teacher's.

    Args:
        trained: lowest and highest level that the teacher was trained on; 0 and infinity if it names none.
        key: of the section, for messages.
        teacher: its name, for messages.

    Raises:
        ValueError: a level that the teacher was not trained on, or sigma_min above sigma_max.
    """
    low, high = trained
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is not None and not low * (1 - ROUNDING) <= value <= high * (1 + ROUNDING):
            raise ValueError(
                f"{key}.{name}: {value:g} is outside {low:.6g} .. {high:.6g}, the noise levels that {teacher} was "
                "trained on; null takes the teacher's own"
            )
    first, last = (
        min(max(edm, low), high) if value is None else value
        for value, edm in ((sigma_min, SIGMA_MIN), (sigma_max, SIGMA_MAX))
    )
    if first > last:
        raise ValueError(f"{key}.sigma_min: {first:g} is above sigma_max {last:g}")
    return first, last


def trained_range(*metadata: Mapping[str, Any]) -> tuple[float, float]:
    """The noise levels that all of these denoisers were trained on, by their files; 0 and infinity where none says."""
    lowest = max(facts.get("sigma_min") or 0.0 for facts in metadata)
    return lowest, min(facts.get("sigma_max") or math.inf for facts in metadata)


def check_sigma(metadata: Mapping[str, Any], sigma: float, path: Path) -> None:
    """ValueError if `sigma` is above the highest noise level that the denoiser in `path` was trained on."""
    _, limit = trained_range(metadata)
    if sigma > limit * (1 + ROUNDING):
        raise ValueError(
            f"{path} was trained on noise up to sigma {limit:.6g}, not {sigma:.6g}: lower the level of the first call, "
            "or that of the solver"
        )


def karras_curve(position: torch.Tensor, *, first: float, last: float, rho: float) -> torch.Tensor:
    """Noise levels between `first` and `last`, evenly spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5).

    Args:
        position: (B,), 0 is `first`, 1 is `last`.

    Returns:
        float64 (B,).
    """
    begin, end = first ** (1 / rho), last ** (1 / rho)
    return (begin + position.double() * (end - begin)) ** rho


def karras_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Descending noise levels, denser at low noise (Karras et al. 2022, Eq. 5).

    Returns:
        float64 (num,), first sigma_max, last sigma_min. The final 0 of a sampling grid is not included.

    Raises:
        ValueError: fewer than one level, or not 0 < sigma_min <= sigma_max.
    """
    if num < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(f"need num >= 1 and 0 < sigma_min <= sigma_max, got {num}, {sigma_min}, {sigma_max}")
    return karras_curve(torch.linspace(0, 1, num, dtype=torch.float64), first=sigma_max, last=sigma_min, rho=rho)


@lru_cache(maxsize=8)
def ascending_sigmas(num: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """`karras_sigmas`, ascending, with exact ends, for maps that are the identity at sigma_min; not to be changed."""
    sigmas = karras_sigmas(num, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).flip(0)
    sigmas[0], sigmas[-1] = sigma_min, sigma_max
    return sigmas


def sampling_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """`karras_sigmas` and the final 0: float64 (num + 1,), descending."""
    sigmas = karras_sigmas(num, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def training_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Noise levels of DMD with EDM teachers (Yin et al. 2023, appendix B): float32 (num,), ascending."""
    return karras_sigmas(num, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).flip(0).float()


def log_normal_sigmas(num: int, *, mean: float, std: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels for training a denoiser: ln sigma ~ N(mean, std^2) (Karras et al. 2022, Table 1). float32 (num,)."""
    return (torch.randn(num, generator=generator) * std + mean).exp()


def seeded_noise(
    seeds: Iterable[int], shape: tuple[int, ...], *, num_classes: int, labels: str = "random"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first noise and the label of `seeded_draws`."""
    return seeded_draws(seeds, shape, num_classes=num_classes, labels=labels)[:2]


def seeded_draws(
    seeds: Iterable[int], shape: tuple[int, ...], *, num_classes: int, labels: str = "random", num_fresh: int = 0
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Noise and labels of `SeededDraws`, and `num_fresh` further tensors of noise (B, C, H, W)."""
    draws = SeededDraws(seeds, shape, num_classes=num_classes, labels=labels)
    return draws.noise, draws.label, [draws.fresh(number) for number in range(num_fresh)]


class SeededDraws:
    """For each seed unit noise, a label, and further unit noise, drawn in this order from that seed only.

    Attributes:
        noise: float32 (B, C, H, W).
        label: int64 (B,).
    """

    def __init__(
        self, seeds: Iterable[int], shape: tuple[int, ...], *, num_classes: int, labels: str = "random"
    ) -> None:
        """Draws noise and labels.

        Args:
            seeds: one per item.
            shape: (C, H, W) of one item.
            num_classes: 0 gives label -1.
            labels: "random" draws uniformly; "balanced" takes seed modulo num_classes.
        """
        if labels not in ("random", "balanced"):
            raise ValueError(f"labels must be 'random' or 'balanced', got {labels!r}")
        self._shape, self._drawn = shape, 0
        seeds = [*seeds]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.noise = self._draw()
        self.label = torch.tensor([*map(self._label(num_classes, labels), seeds, self._generators)])

    def fresh(self, number: int) -> torch.Tensor:
        """Further unit noise (B, C, H, W); the numbers must be 0, 1, 2, ... in this order."""
        if number != self._drawn:
            raise ValueError(f"noise {number} is asked for, but {self._drawn} follows")
        self._drawn += 1
        return self._draw()

    def _draw(self) -> torch.Tensor:
        return torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators])

    @staticmethod
    def _label(num_classes: int, labels: str) -> Callable[[int, torch.Generator], int]:
        if num_classes == 0:
            return lambda seed, generator: -1
        if labels == "balanced":
            return lambda seed, generator: seed % num_classes
        return lambda seed, generator: int(torch.randint(num_classes, (), generator=generator))
