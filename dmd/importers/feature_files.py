"""Loads feature networks from their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmd.importers import weights_file
from dmd.metrics.features import CLASSIFIERS, WEIGHTED, FeatureNetwork, build
from dmd.provenance import pinned, tensor_files

SOURCES = {
    **{
        kind: f"workflow/resources/{kind}.safetensors of the repository, made by dmd.stages.feature_network"
        for kind in CLASSIFIERS
    },
    "inception": "the Inception network of torch-fidelity or pytorch-fid, whose file names end in 2015-12-05-6726825d",
}


def load(
    path: Path | None, features: Mapping[str, Any], *, modes: Sequence[Sequence[float]] | None
) -> tuple[FeatureNetwork, dict[str, Any]]:
    """The feature network of a config section, and its identity: {"name", "sha256"}.

    Args:
        path: the file of its weights; None for kinds without weights.
        features: section `features`, with its kind and the sha256 of the file; None accepts any file.
        modes: centres (K, size) of the modes of a Gaussian mixture.

    Raises:
        ValueError: the file is missing, has another digest, or is given for a kind without weights.
    """
    if path is None:
        network = build(features, state=None, modes=modes)
        return network, {"name": network.name, "sha256": None}
    digest = check_digest(path, features)
    network = build(features, state=weights(path, features["kind"]), modes=modes)
    return network, {"name": network.name, "sha256": digest}


def check_digest(path: Path, features: Mapping[str, Any]) -> str:
    """Digest of the file of weights, if it is the one in the configuration; ValueError as in `load`."""
    kind = features["kind"]
    if kind not in WEIGHTED:
        raise ValueError(f"{path} is given, but features.kind {kind} has no weights")
    return pinned.check(path, features.get("sha256"), key="features.sha256", source=SOURCES[kind])


def weights(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; only tensors are unpickled from a released .pth.

    Raises:
        ValueError: the file cannot be read, or holds anything but named tensors.
    """
    if kind in CLASSIFIERS:
        return tensor_files.load(path)[0]
    try:
        return weights_file.read(path, name="Conv2d_1a_3x3.conv.weight")
    except ValueError as error:
        raise ValueError(f"{error} (expected: {SOURCES[kind]})") from error
