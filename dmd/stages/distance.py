"""The distance of the regression loss, from its files."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from dmd.artifacts import pinned
from dmd.methods.losses import Distance
from dmd.methods.regression import Lpips, l2_distance
from dmd.stages import processes


def regression_distance(numbers: dict[str, Any], weights: Path | None, device: torch.device) -> Distance:
    """What section `regression_distance` names; ValueError if the weights of LPIPS are missing or others."""
    if numbers["kind"] == "l2":
        return l2_distance
    if weights is None:
        raise ValueError("regression_distance of kind lpips needs VGG16 weights: give --lpips")
    if processes.rank() == 0:  # where no digest is known, it writes down the one it finds
        pinned.check(
            weights, numbers["sha256"], key="regression_distance.sha256", source="VGG16 weights of torchvision"
        )
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise ValueError("regression_distance of kind lpips needs the lpips package: its heads are read from there")
    heads = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
    trunk, linear = (torch.load(path, map_location="cpu", weights_only=True) for path in (weights, heads))
    return Lpips(trunk, linear, pooling=numbers["pooling"], size=numbers["size"]).to(device)
