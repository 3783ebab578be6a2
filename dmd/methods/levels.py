"""The noise levels that a distillation draws from."""

from typing import Any

import torch

from dmd.diffusion.denoiser import Denoiser
from dmd.diffusion.noise import training_sigmas


def noise_table(levels: dict[str, Any], teacher: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Alpha and sigma of each level, sigma = sigma_t / alpha ascending.

    Args:
        levels: `distill.method.levels`: `kind` karras (where absent: count, sigma_min, sigma_max, rho; alpha is 1) or
            teacher, the table a network with discrete time was trained on; min_index, max_index of the matching loss.
        teacher: the real score.

    Returns:
        float32 (T,), (T,) on the CPU.

    Raises:
        ValueError: kind teacher, but the teacher knows no table or one too short for max_index.
    """
    if levels.get("kind", "karras") == "karras":
        sigmas = training_sigmas(levels["count"], **{key: levels[key] for key in ("sigma_min", "sigma_max", "rho")})
        return torch.ones_like(sigmas), sigmas
    table = teacher.table if isinstance(teacher, Denoiser) else None
    if table is None:
        raise ValueError(
            "distill.method.levels.kind teacher: this teacher has no noise table of its own; use kind karras"
        )
    if levels["max_index"] >= len(table[0]):
        raise ValueError(
            f"distill.method.levels.max_index: {levels['max_index']} is beyond the teacher's table of "
            f"{len(table[0])} levels"
        )
    return table[0].float(), table[1].float()
