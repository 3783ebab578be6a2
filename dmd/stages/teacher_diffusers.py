"""Teachers from a local folder of diffusers: a UNet2DModel and the noise levels of its DDPM or DDIM scheduler.

Only JSON and safetensors are read; no code in the folder is run, and nothing is fetched.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.diffusion.preconditioning import preconditioning
from dmd.networks.unet2d import UNet2D, named

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
MAX_LAYERS, MAX_LEVELS = 64, 16  # the released ones have 2 and 6
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention before diffusers 0.15


def source_files(folder: Path) -> list[Path]:
    """The files that a teacher is made of: configurations and weights.

    Raises:
        ValueError: one that is needed is missing or cannot be read; the message says which and what belongs there.
    """
    index = folder / "model_index.json"
    found = [index] if index.exists() else []
    unet = _unet(folder)
    found += [_scheduler(folder, unet), _needed(unet / "config.json", "the configuration of the UNet2DModel")]
    shards = unet / f"{WEIGHTS}.index.json"
    if not shards.exists():
        return [*found, _needed(unet / WEIGHTS, "its weights (other formats are not read: save them as safetensors)")]
    names = sorted(set(_json(shards).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{shards}: weight_map names no files beside it")
    return [*found, shards, *(_needed(unet / name, "a part of its weights") for name in names)]


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (`ema.*`, float32) and facts (network, preconditioning, shape, classes, range of sigma) of a folder.

    Raises:
        ValueError: something is missing, or is no pixel pipeline of this kind; each is named.
    """
    files = source_files(folder)
    if (index := folder / "model_index.json") in files:
        _check_pipeline(index)
    unet = _unet(folder)
    config = _json(unet / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{unet}/config.json: {config['_class_name']!r} is no UNet2DModel")
    if config.get("time_embedding_type", "positional") != "positional":
        raise ValueError(f"{unet}/config.json: time_embedding_type {config['time_embedding_type']!r} is not known here")
    architecture: dict[str, Any] = {
        "kind": "unet2d",
        "config": {key: value for key, value in config.items() if key[:1] != "_"},
    }
    try:
        _check_extent(config)
        with torch.device("meta"):
            network = UNet2D(config=architecture["config"])
        levels = _levels(_scheduler(folder, unet))
        table = preconditioning(levels, sigma_data=1.0).table
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    assert table is not None  # kind discrete has one
    facts = {
        "network": architecture,
        "preconditioning": levels,
        "sigma_data": 1.0,
        "shape": [network.channels, network.resolution, network.resolution],
        "num_classes": network.num_classes,
        "sigma_min": float(table[1][0]),
        "sigma_max": float(table[1][-1]),
    }
    return {f"ema.{name}": value.float() for name, value in named(_weights(files)).items()}, facts


def _check_extent(config: dict[str, Any]) -> None:
    """ValueError if so many layers are asked for that making them, even without weights, would take long."""
    layers, levels = config.get("layers_per_block", 2), config.get("block_out_channels", ())
    deep = isinstance(layers, int) and layers > MAX_LAYERS
    if deep or (isinstance(levels, list) and len(levels) > MAX_LEVELS):
        raise ValueError(f"more than {MAX_LAYERS} layers_per_block or {MAX_LEVELS} block_out_channels")


def _unet(folder: Path) -> Path:
    """The folder of the network: `unet` of a pipeline, or the folder itself."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _scheduler(folder: Path, unet: Path) -> Path:
    name = "scheduler_config.json"
    places = [folder / "scheduler" / name, unet / name, unet.parent / "scheduler" / name]
    return next((path for path in places if path.is_file()), None) or _needed(
        places[0], "the configuration of the scheduler that the network was trained with"
    )


def _needed(path: Path, what: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {what}")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _check_pipeline(index: Path) -> None:
    parts = {name: entry for name, entry in _json(index).items() if isinstance(entry, list) and entry != [None, None]}
    if parts.pop("unet", None) != ["diffusers", "UNet2DModel"]:
        raise ValueError(f"{index}: the unet of this pipeline is no UNet2DModel of diffusers")
    if others := sorted(set(parts) - {"scheduler"}):
        raise ValueError(f"{index}: {', '.join(others)} besides unet and scheduler: only pipelines of pixels are known")


def _levels(path: Path) -> dict[str, Any]:
    """The preconditioning that a scheduler's configuration describes; diffusers computes its noise levels."""
    torchvision_operators.ensure()
    import diffusers

    config = _json(path)
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if name not in SCHEDULERS:
        raise ValueError(f"{path}: scheduler {name!r} is none of {', '.join(SCHEDULERS)}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{path}: prediction_type {prediction!r} is none of {', '.join(PREDICTIONS)}")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path}: rescale_betas_zero_snr leaves no signal in the last level, whose sigma is infinite")
    try:
        scheduler = getattr(diffusers, name).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: {error}") from error
    squares = scheduler.alphas_cumprod.double().tolist()
    return {"kind": "discrete", "alphas_cumprod": squares, "prediction": PREDICTIONS[prediction]}


def _weights(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors among `files`, old names of attention layers replaced."""
    found: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            try:
                found |= safetensors.torch.load_file(path)
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
    return {_renamed(name): value for name, value in found.items()}


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    block, _, part = layer.rpartition(".")
    return f"{block}.{RENAMED[part]}.{kind}" if ".attentions." in name and part in RENAMED else name
