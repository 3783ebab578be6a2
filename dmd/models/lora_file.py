"""LoRA files of others for the network of Stable Diffusion: diffusers' own layouts, and kohya's, as LCM-LoRA has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from dmd import torchvision_operators

HEADER = "lora_adapter_metadata"  # diffusers' key for the numbers of an adapter, in JSON
ENDS = (".lora_A.weight", ".lora_B.weight")
PATTERNS = ("rank_pattern", "alpha_pattern")


def load(path: Path, *, scale: float) -> dict[str, Tensor]:
    """What a file adds to the network, as `dmd.models.lora.merged` takes it at scale 1.

    Args:
        path: `pytorch_lora_weights.safetensors`, or one of its kind.
        scale: how much of it is wanted; 1 is what diffusers adds.

    Raises:
        ValueError: the file is missing or no safetensors file, or holds other things than LoRA of this network.
    """
    stored, header = _read(path)
    torchvision_operators.ensure()
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    if odd := [name for name in stored if "lora" not in name and not name.endswith(".alpha")] or [
        name for name in stored if "dora_scale" in name or ".lokr_" in name
    ]:
        raise ValueError(f"{path}: {odd[0]} belongs to no plain LoRA")
    try:
        found, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(stored)
        found = found if any("lora_A" in name for name in found) else convert_unet_state_dict_to_peft(found)
        alphas = convert_unet_state_dict_to_peft({_down(name): alpha for name, alpha in (alphas or {}).items()})
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as LoRA: {error}") from error
    if odd := [name for name in found if not (name.startswith("unet.") and name.endswith(ENDS))]:
        raise ValueError(f"{path}: {odd[0]} is no LoRA of the network: text encoders and biases are not adapted here")
    for name in [name for name in found if name.endswith(ENDS[1])]:
        layer, rank = name.removesuffix(ENDS[1]), found[name].shape[1]
        alpha = float(alphas.get(layer + ENDS[0], _alpha(header, rank, path)))
        found[name] = found[name].float() * (scale * alpha / rank)
    return {name: value.float() for name, value in found.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {}).get(HEADER, "{}"))
        return load_file(path), header
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file of LoRA: {error}") from error


def _down(name: str) -> str:
    """The name of the weight that an alpha of kohya's stands for, as diffusers had it before peft."""
    layer = name.removesuffix(".alpha")
    return layer if layer.endswith(".weight") else f"{layer}.lora.down.weight"


def _alpha(header: dict[str, Any], rank: int, path: Path) -> float:
    """alpha of all layers: what the header says, else the rank."""
    if odd := [name for name in PATTERNS if header.get(f"unet.{name}")]:
        raise ValueError(f"{path}: {odd[0]} differs from layer to layer, which is not read here")
    return float(header.get("unet.lora_alpha", rank))
