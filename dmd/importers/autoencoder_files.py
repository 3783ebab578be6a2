"""Autoencoders in folders of diffusers: AutoencoderKL of a pipeline, or AutoencoderTiny."""

from pathlib import Path
from typing import Any

import torch

from dmd.importers import pipeline_files as pipelines
from dmd.models.autoencoder import CLASSES, Codec

FULL, TINY = CLASSES["full"], CLASSES["tiny"]


def source_files(folder: Path, kind: str = "full", variant: str | None = None) -> list[Path]:
    """Configuration and weights, of the variant where there is one; ValueError if one is missing."""
    return pipelines.network_files(folder, CLASSES[kind], variant=variant)


def load(
    folder: Path, kind: str = "full", variant: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (float32, names as in `Codec`), and facts: `autoencoder` {kind, config}, latent_channels, scale.

    Raises:
        ValueError: a file is missing, is of another class, or does not fit.
    """
    files = source_files(folder, kind, variant)
    section = {"kind": kind, "config": _config(folder, kind)}
    state = {f"autoencoder.{name}": value for name, value in pipelines.tensors_of(files).items()}
    with torch.device("meta"):
        codec = _codec(folder, section)
    pipelines.check_weights(codec, state, folder)
    facts = {"autoencoder": section, "latent_channels": codec.channels, "scale": codec.scale}
    return state, facts


def image_shape(folder: Path, latent_shape: list[int]) -> list[int]:
    """Shape (3, H, W) of a decoded latent; ValueError if its channels are not those of the autoencoder in `folder`."""
    with torch.device("meta"):
        codec = _codec(folder, {"kind": "full", "config": _config(folder, "full")})
    if codec.channels != latent_shape[0]:
        raise ValueError(
            f"{folder}: its latents have {codec.channels} channels, those of the network {latent_shape[0]}"
        )
    return [3, *(side * codec.scale for side in latent_shape[1:])]


def _config(folder: Path, kind: str) -> dict[str, Any]:
    return pipelines.network_config(folder / "config.json", CLASSES[kind])


def _codec(folder: Path, section: dict[str, Any]) -> Codec:
    try:
        return Codec(**section)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
