"""What an update of DMD is told: the numbers of its section, and a batch."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch

from dmd.diffusion.compute import Compute


class Numbers(TypedDict):
    """Section `distill` of an experiment; what each number means stands in the config schema."""

    sigma: float
    levels: dict[str, Any]
    weighting: str
    alpha_factor: bool
    fake_score: bool
    matching_weight: float
    regression_weight: float
    regression_distance: dict[str, Any]
    matching_batch_size: int
    regression_batch_size: int
    shared_noise: bool
    optimiser: dict[str, Any]
    ema_decay: float
    phases: list[dict[str, Any]]
    seed: int
    checkpoint_every: int
    grid_every: int
    log_every: int
    device: str
    threads: int
    processes: NotRequired[int]
    compute: NotRequired[Compute]


@dataclass(frozen=True)
class Batch:
    """Unit noise (B, C, H, W) and labels (B,) of the matching loss; (noise, label, image) of the regression loss.

    It is the whole batch of an update, on the CPU, whatever part of it a process works on.
    """

    noise: torch.Tensor
    label: torch.Tensor
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
