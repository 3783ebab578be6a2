"""Published LoRA files for the network of Stable Diffusion, in the layouts of diffusers and of kohya (LCM-LoRA)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dmd import torchvision_operators
from dmd.models import outside_config
from dmd.provenance import outside_files, tensor_files

if TYPE_CHECKING:
    from peft import LoraConfig

HEADER = "lora_adapter_metadata"  # diffusers' key for rank and alpha, in JSON
ENDS = (".lora_A.weight", ".lora_B.weight")
PREFIX = "unet."


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
    from diffusers.utils.peft_utils import get_peft_kwargs
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from peft import LoraConfig

    if odd := [name for name in tensors if "lora" not in name and not name.endswith(".alpha")] or [
        name for name in tensors if "dora_scale" in name or ".lokr_" in name
    ]:
        raise ValueError(f"{path}: {odd[0]} is not part of a plain LoRA")
    try:
        weights, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors)
        weights = weights if any("lora_A" in name for name in weights) else convert_unet_state_dict_to_peft(weights)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as LoRA: {error}") from error
    if odd := [name for name in weights if not (name.startswith(PREFIX) and name.endswith(ENDS))]:
        raise ValueError(f"{path}: {odd[0]} is no LoRA of the network; text encoders and biases are not supported")
    layers = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    if header and alphas:
        raise ValueError(f"{path} has both {HEADER} and tensors of alpha, which may contradict each other: remove one")
    if header:
        config = _of_header(header, path)
    else:
        ranks = {f"^{name}": value.shape[1] for name, value in layers.items() if name.endswith(ENDS[1])}
        of_network = {name.removeprefix(PREFIX): float(value) for name, value in (alphas or {}).items()}
        config = LoraConfig(**get_peft_kwargs(ranks, of_network, layers))
    for name in [name for name in layers if name.endswith(ENDS[1])]:
        factor = _strength(config, name.removesuffix(ENDS[1]), layers[name].shape[1], path)
        weights[PREFIX + name] = layers[name].float() * (scale * factor)
    return {name: value.float() for name, value in weights.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = tensor_files.read(path)
    with outside_files.reading(path, "LoRA"):
        header = json.loads(metadata.get(HEADER, "{}"))
        if not isinstance(header, dict):
            raise ValueError(f"its {HEADER} is no JSON object")
    return tensors, header


def _of_header(header: dict[str, Any], path: Path) -> LoraConfig:
    """The adapter's configuration, from the keys of the header that belong to the network."""
    from peft import LoraConfig

    keys = {key.removeprefix(PREFIX): value for key, value in header.items() if key.startswith(PREFIX)}
    if not keys:
        raise ValueError(f"{path}: {HEADER} has no key that begins with {PREFIX}")
    if odd := [key for key in header if not key.startswith((PREFIX, "text_encoder"))]:  # its tensors are refused
        raise ValueError(f"{path}: {HEADER}: {odd[0][:80]} is unknown: keys of the network begin with {PREFIX}")
    if odd := [key for key in ("rank_pattern", "alpha_pattern") if not isinstance(keys.get(key) or {}, dict)]:
        raise ValueError(f"{path}: {HEADER}: {odd[0]} {keys[odd[0]]!r:.80} is no mapping")
    outside_config.check(f"{path}: {HEADER}: unet", keys, "LoraConfig")
    known = outside_config.library_defaults("LoraConfig")
    try:
        config = LoraConfig(**{key: value for key, value in keys.items() if key in known and value is not None})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {HEADER}: {error}") from error
    numbers = [config.r, config.lora_alpha, *config.rank_pattern.values(), *config.alpha_pattern.values()]
    if odd := [number for number in numbers if not isinstance(number, (int, float))]:
        raise ValueError(f"{path}: {HEADER}: rank or alpha {odd[0]!r:.80} is no number")
    return config


def _strength(config: LoraConfig, layer: str, rank: int, path: Path) -> float:
    """The factor on the product of a layer's matrices, as in peft.

    Raises:
        ValueError: the configuration is that of a file without this layer, or of another rank.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    if config.target_modules and not check_target_module_exists(config, layer):
        raise ValueError(
            f"{path}: {layer} is not among the target_modules of {HEADER}, so diffusers would pass it over"
        )
    stated = config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r)
    if stated != rank:
        raise ValueError(f"{path}: {layer} has rank {rank}, but {HEADER} says {stated!r:.80}")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, layer), config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)
