"""The smallest distillation, of points, for what keeps and restores it."""

from typing import Any

import torch

from dmd.diffusion.denoiser import Denoiser
from dmd.methods.dmd import Distillation
from dmd.methods.regression import l2_distance
from dmd.networks import build

NETWORK = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 4, "layers": 1, "num_classes": 0}
NUMBERS: Any = {
    "levels": {"count": 10, "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0},
    "optimiser": {
        "learning_rate": 1e-3,
        "fake_learning_rate": None,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "gradient_clip": 10.0,
    },
    "ema_decay": 0.9,
}


def distillation() -> Distillation:
    """After a step of both optimisers."""
    found = Distillation(*(Denoiser(build(NETWORK), sigma_data=0.5) for _ in range(3)), NUMBERS, l2_distance)
    optimisers = found.generator_optimiser, found.fake_optimiser
    for denoiser, optimiser in zip((found.generator, found.fake), optimisers, strict=True):
        for parameter in denoiser.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.update()
    return found
