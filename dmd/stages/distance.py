"""The distances of the regression loss, from their files."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmd import loading
from dmd.artifacts import pinned, weights_file
from dmd.diffusion.compute import DTYPES, Compute
from dmd.methods.decoded import Decoded
from dmd.methods.denoisers import Distance
from dmd.methods.numbers import Numbers
from dmd.methods.phases import Phase
from dmd.methods.regression import Lpips, l2_distance
from dmd.networks.autoencoder import Codec
from dmd.stages import processes


class DistanceFiles(NamedTuple):
    """Weights that a distance may need: VGG16 of LPIPS, and the autoencoders of latents."""

    lpips: Path | None = None
    tiny: Path | None = None
    full: Path | None = None


def regression_distances(
    numbers: Numbers, phases: Iterable[Phase], files: DistanceFiles, device: torch.device
) -> dict[str, Distance]:
    """The distance of section `regression_distance` through each decoder that a phase names, by the decoder's name.

    Raises:
        ValueError: weights of LPIPS or of a decoder are missing, or others than they should be.
    """
    distance = _distance(numbers["regression_distance"], files.lpips, device)
    compute, found = numbers.get("compute", Compute()), {}
    for name in dict.fromkeys(phase.numbers["decoder"] for phase in phases):
        found[name] = distance if name == "none" else Decoded(distance, _codec(name, files, compute).to(device))
    return found


def _codec(name: str, files: DistanceFiles, compute: Compute) -> Codec:
    path, flag = (files.tiny, "--tiny-autoencoder") if name == "tiny" else (files.full, "--autoencoder")
    if path is None:
        raise ValueError(
            f"distill.method.regression_distance.decoder {name}: needs the autoencoder's file: give {flag}"
        )
    codec = loading.load_codec(path)
    codec.dtype = DTYPES[compute.get("dtype", "float32")]
    codec.checkpointing = bool(compute.get("gradient_checkpointing"))
    return codec


def _distance(numbers: dict[str, Any], weights: Path | None, device: torch.device) -> Distance:
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
    trunk, linear = weights_file.read(weights), weights_file.read(heads)
    try:
        return Lpips(trunk, linear, pooling=numbers["pooling"], size=numbers["size"]).to(device)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
