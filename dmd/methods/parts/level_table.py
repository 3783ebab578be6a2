"""The noise levels of DMD's losses."""

import torch

from dmd.config.methods import KarrasLevels, TeacherLevels
from dmd.methods.base import Facts
from dmd.models.denoiser import Denoiser
from dmd.sampling.noise import training_sigmas


def noise_levels(
    levels: KarrasLevels | TeacherLevels, teacher: object, facts: Facts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alpha, and sigma = sigma_t / alpha in ascending order, of each level.

    Args:
        levels: section for EDM's levels, where alpha is 1, or for the table of noise levels that the teacher has.
        teacher: the denoiser that has this table.
        facts: the noise levels that it was trained on.

    Returns:
        float32 (T,), (T,) on the CPU.

    Raises:
        ValueError: the kind is teacher, but the teacher has no table, or a table too short for max_index; or
            levels of EDM that it was not trained on.
    """
    if isinstance(levels, KarrasLevels):
        first, last = facts.levels(levels.sigma_min, levels.sigma_max, key="distill.method.levels")
        sigmas = training_sigmas(levels.count, sigma_min=first, sigma_max=last, rho=levels.rho)
        return torch.ones_like(sigmas), sigmas
    table = teacher.table if isinstance(teacher, Denoiser) else None
    if table is None:
        raise ValueError(
            "distill.method.levels.kind: teacher, but this teacher has no table of noise levels: use karras"
        )
    if levels.max_index >= len(table[0]):
        raise ValueError(
            f"distill.method.levels.max_index: {levels.max_index} is beyond the {len(table[0])} levels of the teacher"
        )
    return table[0].float(), table[1].float()
