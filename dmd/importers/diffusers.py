"""Teachers from a local folder saved by diffusers: a UNet2DModel and the noise levels of its DDPM or DDIM scheduler.

Only JSON and safetensors are read; no code in the folder is run, nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch

from dmd.importers import autoencoder_files as autoencoders
from dmd.importers import pipeline_files as pipelines
from dmd.models import outside_config
from dmd.models.networks import build
from dmd.models.networks.unet2d import rename_weights
from dmd.models.preconditioning import preconditioning

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")


def source_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of a teacher: configurations and weights, including its autoencoder's if it works on latents.

    Args:
        variant: of the weights, see `dmd.importers.pipeline_files.network_files`.

    Raises:
        ValueError: a required file is missing or cannot be read; the message names it and its purpose.
    """
    index = folder / "model_index.json"
    paths = [index] if index.exists() else []
    unet = _unet(folder)
    paths += [_scheduler(folder, unet), *pipelines.network_files(unet, "UNet2DModel", variant=variant)]
    paths += autoencoders.source_files(folder / "vae", variant=variant) if _latent(index) else []
    pipelines.check_variant(folder, paths, variant)
    return paths


def load(folder: Path, variant: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (`ema.*`, float32) and facts (network, preconditioning, shape, classes, range of sigma) of a folder.

    A pipeline with a vae also has `image_shape`, the shape of a decoded latent.

    Raises:
        ValueError: a file is missing, or the folder is no pipeline of this kind.
    """
    files = source_files(folder, variant)
    index = folder / "model_index.json"
    if index in files:
        _check_pipeline(index)
    unet = _unet(folder)
    config = pipelines.network_config(unet / "config.json", "UNet2DModel")
    architecture: dict[str, Any] = {"kind": "unet2d", "config": config}
    scheduler = _scheduler(folder, unet)
    try:
        with torch.device("meta"):
            network: Any = build(architecture)
        pipelines.try_pass(unet / "config.json", network, torch.empty(1, dtype=torch.int64, device="meta"))
        levels = pipelines.scheduler_preconditioning(scheduler, index, SCHEDULERS)
        table = preconditioning(levels, sigma_data=1.0).table
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    assert table is not None  # kind discrete has one
    shape = [network.channels, network.resolution, network.resolution]
    facts: dict[str, Any] = {
        "network": architecture,
        "preconditioning": levels,
        "scheduler": pipelines.scheduler_config(scheduler),
        "sigma_data": 1.0,
        "shape": shape,
        "num_classes": network.num_classes,
        "sigma_min": float(table[1][0]),
        "sigma_max": float(table[1][-1]),
    }
    if _latent(index):
        facts["image_shape"] = autoencoders.image_shape(folder / "vae", shape)
    weights = pipelines.tensors_of([path for path in files if path.parent == unet])
    return {f"ema.{name}": value for name, value in rename_weights(weights).items()}, facts


def _unet(folder: Path) -> Path:
    """The folder of the network: `unet` of a pipeline, or the folder itself."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _scheduler(folder: Path, unet: Path) -> Path:
    name = "scheduler_config.json"
    paths = [folder / "scheduler" / name, unet / name, unet.parent / "scheduler" / name]
    return next((path for path in paths if path.is_file()), None) or pipelines.existing_file(
        paths[0], "the configuration of the scheduler that the network was trained with"
    )


def _parts(index: Path) -> dict[str, Any]:
    """The parts of a pipeline: name -> [library, class]."""
    entries = pipelines.read_json(index) if index.exists() else {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, list) and entry != [None, None]}


def _latent(index: Path) -> bool:
    """Whether the pipeline works on latents of an AutoencoderKL."""
    return _parts(index).get("vae") == ["diffusers", autoencoders.FULL]


def _check_pipeline(index: Path) -> None:
    parts = _parts(index)
    if parts.pop("unet", None) != ["diffusers", "UNet2DModel"]:
        raise ValueError(f"{index}: the unet of this pipeline is not a UNet2DModel of diffusers")
    if _latent(index):
        parts.pop("vae")
    single = {name: entry for name, entry in pipelines.read_json(index).items() if not isinstance(entry, list)}
    outside_config.check(index, single, "StableDiffusionPipeline")
    if others := sorted(set(parts) - {"scheduler"}):
        raise ValueError(
            f"{index} lists {', '.join(others)} besides unet and scheduler: supported are pipelines on pixels, "
            f"and on latents with a vae of class {autoencoders.FULL}"
        )
