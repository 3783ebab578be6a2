"""Loads the image distances that losses use, with the weights that they need."""

from pathlib import Path
from typing import NamedTuple

import torch

from dmd import torchvision_operators
from dmd.config.methods.distances import L1Distance, L2Distance, LpipsDistance
from dmd.config.training import Training, TrainingCompute
from dmd.importers import weights_file
from dmd.jobs import processes
from dmd.methods.base import Distance
from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.methods.parts.distances import Lpips, l1_distance, l2_distance
from dmd.models import loading
from dmd.models.autoencoder import Codec
from dmd.models.compute import DTYPES
from dmd.provenance import pinned


class DistanceFiles(NamedTuple):
    """Files of weights that a distance may need: VGG16 of LPIPS, and the autoencoders of latents."""

    lpips: Path | None = None
    tiny: Path | None = None
    full: Path | None = None

    def codec(self, name: str, *, key: str) -> Codec:
        """The decoder "tiny" or "full"; ValueError with the key that asks for it if there is no file."""
        path, flag = (self.tiny, "--tiny-autoencoder") if name == "tiny" else (self.full, "--autoencoder")
        if path is None:
            raise ValueError(f"{key}: {name} needs the autoencoder's file: give {flag}")
        return loading.load_codec(path)


def distances(training: Training, files: DistanceFiles, device: torch.device) -> dict[str, Distance]:
    """The image distance of a method's losses for each decoder that a phase names, by the decoder's name.

    Raises:
        ValueError: weights of LPIPS or of a decoder are missing, or are not the expected ones.
    """
    section = training.method.distance()
    if not isinstance(section, L2Distance | L1Distance | LpipsDistance):
        return {}
    key = f"distill.method.{training.method.distance_key()}"
    distance = _distance(section, key, files.lpips, device)
    by_decoder: dict[str, Distance] = {}
    for name in training.method.decoders():
        codec = None if name == "none" else _codec(name, files, training.compute, key=f"{key}.decoder").to(device)
        by_decoder[name] = distance if codec is None else DecodedDistance(distance, codec)
    return by_decoder


def _codec(name: str, files: DistanceFiles, compute: TrainingCompute, *, key: str) -> Codec:
    codec = files.codec(name, key=key)
    codec.dtype = DTYPES[compute.dtype]
    codec.checkpointing = compute.gradient_checkpointing
    return codec


def _distance(
    section: L2Distance | L1Distance | LpipsDistance, key: str, weights: Path | None, device: torch.device
) -> Distance:
    if isinstance(section, L2Distance):
        return l2_distance
    if isinstance(section, L1Distance):
        return l1_distance
    if weights is None:
        raise ValueError("a distance of kind lpips needs VGG16 weights: give --lpips")
    if processes.rank() == 0:  # the check may write a record beside the file
        pinned.check(weights, section.sha256, key=f"{key}.sha256", source="VGG16 weights of torchvision")
    torchvision_operators.ensure()
    import lpips

    trunk = weights_file.read(weights, name="features.0.weight")
    installed = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"  # comes with the package
    heads = weights_file.read(installed, name="lin0.model.1.weight")
    try:
        return Lpips(trunk, heads, pooling=section.pooling, size=section.size).to(device)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
