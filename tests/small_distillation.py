"""The smallest distillation, of points, for what keeps and restores it."""

import torch

from dmd.methods.base import Facts
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.train.trainer import Trainer
from tests.trainings import FixedRows, Updates

NETWORK = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 4, "layers": 1, "num_classes": 0}
SECTION = {
    "method": {
        "name": "dmd",
        "levels": {"count": 10, "min_index": 0, "max_index": 9},
        "matching_batch_size": 2,
        "regression_weight": 0.0,
        "phases": [{"updates": 1}],
    },
    "optimisers": {"student": {"learning_rate": 1e-3}},
    "ema_decay": 0.9,
}
ROWS = {"noise": torch.ones(2, 2, 1, 1), "label": torch.full((2,), -1)}


def distillation() -> Trainer:
    """After an update."""
    modules = {role: Denoiser(build(NETWORK), sigma_data=0.5) for role in ("teacher", "student", "fake")}
    for module in modules.values():
        for parameter in module.parameters():
            parameter.data += 0.1
    found = Updates(SECTION, modules, Facts((2, 1, 1), 0, 0.5), {"noise": FixedRows(ROWS)})
    found.update(0)
    return found.trainer
