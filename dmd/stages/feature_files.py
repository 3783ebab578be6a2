"""Feature networks from their pinned files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd.artifacts import files
from dmd.artifacts import tensors as tensor_files
from dmd.metrics.features import FeatureNetwork, build


def load(path: Path | None, features: Mapping[str, Any], *, modes: Sequence[Sequence[float]] | None) -> FeatureNetwork:
    """The feature network that a config section describes.

    Args:
        path: the file of its weights, None for kinds without weights.
        features: section `features`: kind, and the sha256 that pins the file.
        modes: centres (K, size) of the dataset's modes, where it is a mixture.

    Raises:
        ValueError: the file is missing or not the pinned one, or is given for a kind without weights.
    """
    if path is None:
        return build(features, state=None, modes=modes)
    kind, pinned = features["kind"], features.get("sha256")
    if pinned is None:
        raise ValueError(f"{path} is given, but features.kind {kind} pins no file (features.sha256)")
    source = f"weights of the feature network {kind}; tracked, or made by dmd.stages.feature_network"
    if not path.is_file():
        raise ValueError(f"{path} is missing: put the file with sha256 {pinned} there ({source})")
    found = files.sha256(path)
    if found != pinned:
        raise ValueError(f"{path} has sha256 {found}, but features.sha256 pins {pinned} ({source})")
    return build(features, state=tensor_files.load(path)[0], modes=modes)
