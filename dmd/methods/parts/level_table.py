"""The noise levels of DMD's losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dmd.config.methods.levels import KarrasLevels, TeacherLevels
from dmd.methods.base import Facts
from dmd.models.denoiser import Denoiser, per_sample
from dmd.sampling.noise import training_sigmas

NUM_BINS = 10  # of noise levels in the log


class Noised(NamedTuple):
    """Images (B, C, H, W) with noise, and the noise level of each: sigma and alpha (B,)."""

    image: torch.Tensor
    sigma: torch.Tensor
    alpha: torch.Tensor


def with_noise(image: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> Noised:
    """Images (B, C, H, W) with unit noise of levels sigma (B,), where alpha is 1."""
    return Noised(torch.addcmul(image, noise, per_sample(sigma, image)), sigma, torch.ones_like(sigma))


@dataclass(frozen=True)
class LevelTable:
    """Alpha, and sigma = sigma_t / alpha in ascending order, of each noise level: float32 (T,), (T,)."""

    alphas: torch.Tensor
    sigmas: torch.Tensor

    def __len__(self) -> int:
        return len(self.sigmas)

    def noised(self, image: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> Noised:
        """x_t / alpha_t of images (Yin et al. 2023, Eq. 3) at levels (B,), from unit noise."""
        sigma = self.sigmas[level]
        return Noised(torch.addcmul(image, noise, per_sample(sigma, image)), sigma, self.alphas[level])

    def bins(self, level: torch.Tensor) -> torch.Tensor:
        """The bin of the log, below NUM_BINS, of each level (B,)."""
        return level * NUM_BINS // len(self)


def noise_levels(
    levels: KarrasLevels | TeacherLevels, teacher: object, facts: Facts, device: torch.device | None = None
) -> LevelTable:
    """The noise levels of a section.

    Args:
        levels: section for EDM's levels, where alpha is 1, or for the table of noise levels that the teacher has.
        teacher: the denoiser that has this table.
        facts: the noise levels that it was trained on.
        device: of the result; None is the CPU.

    Raises:
        ValueError: the kind is teacher, but the teacher has no table, or a table too short for max_index; or
            levels of EDM that it was not trained on.
    """
    if isinstance(levels, KarrasLevels):
        first, last = facts.levels(levels.sigma_min, levels.sigma_max, key="distill.method.levels")
        sigmas = training_sigmas(levels.count, sigma_min=first, sigma_max=last, rho=levels.rho)
        return LevelTable(torch.ones_like(sigmas).to(device), sigmas.to(device))
    table = teacher.table if isinstance(teacher, Denoiser) else None
    if table is None:
        raise ValueError(
            "distill.method.levels.kind: teacher, but this teacher has no table of noise levels: use karras"
        )
    if levels.max_index >= len(table[0]):
        raise ValueError(
            f"distill.method.levels.max_index: {levels.max_index} is beyond the {len(table[0])} levels of the teacher"
        )
    return LevelTable(table[0].float().to(device), table[1].float().to(device))
