"""Published LoRA files for the network of Stable Diffusion, in the layouts of diffusers and of kohya (LCM-LoRA)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dmd import torchvision_operators
from dmd.provenance import outside_files, tensor_files

HEADER = "lora_adapter_metadata"  # diffusers' key for rank and alpha, in JSON
ENDS = (".lora_A.weight", ".lora_B.weight")
PATTERNS = ("rank_pattern", "alpha_pattern")


def load(path: Path, *, scale: float) -> dict[str, Tensor]:
    """The adapter in a file, scaled so that `dmd.models.lora.merge_adapter` takes it with scale 1.

    Args:
        path: such as `pytorch_lora_weights.safetensors`.
        scale: strength of the adapter; 1 is diffusers' default.

    Raises:
        ValueError: the file is missing, is not in safetensors format, or holds anything but LoRA of this network.
    """
    tensors, header = _read(path)
    torchvision_operators.ensure()
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    if odd := [name for name in tensors if "lora" not in name and not name.endswith(".alpha")] or [
        name for name in tensors if "dora_scale" in name or ".lokr_" in name
    ]:
        raise ValueError(f"{path}: {odd[0]} is not part of a plain LoRA")
    try:
        weights, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors)
        weights = weights if any("lora_A" in name for name in weights) else convert_unet_state_dict_to_peft(weights)
        alphas = convert_unet_state_dict_to_peft({_down(name): alpha for name, alpha in (alphas or {}).items()})
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as LoRA: {error}") from error
    if odd := [name for name in weights if not (name.startswith("unet.") and name.endswith(ENDS))]:
        raise ValueError(f"{path}: {odd[0]} is no LoRA of the network; text encoders and biases are not supported")
    for name in [name for name in weights if name.endswith(ENDS[1])]:
        layer, rank = name.removesuffix(ENDS[1]), weights[name].shape[1]
        alpha = float(alphas.get(layer + ENDS[0], _alpha(header, rank, path)))
        weights[name] = weights[name].float() * (scale * alpha / rank)
    return {name: value.float() for name, value in weights.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = tensor_files.read(path)
    with outside_files.reading(path, "LoRA"):
        header = json.loads(metadata.get(HEADER, "{}"))
        if not isinstance(header, dict):
            raise ValueError(f"its {HEADER} is no JSON object")
    return tensors, header


def _down(name: str) -> str:
    """The weight that an alpha of kohya belongs to, under its name in diffusers before peft."""
    layer = name.removesuffix(".alpha")
    return layer if layer.endswith(".weight") else f"{layer}.lora.down.weight"


def _alpha(header: dict[str, Any], rank: int, path: Path) -> float:
    """alpha of all layers: from the header, else the rank."""
    if odd := [name for name in PATTERNS if header.get(f"unet.{name}")]:
        raise ValueError(f"{path}: {odd[0]} differs from layer to layer, which is not supported")
    return float(header.get("unet.lora_alpha", rank))
