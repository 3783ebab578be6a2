"""Reads OpenAI's EDM teacher of consistency models (Song et al. 2023) as the ADM network of `UNet`.

The file is a state dict of the U-Net of guided diffusion, the architecture of Dhariwal and Nichol 2021. It differs from
`UNet` in names, in the order of attention channels (query, key and value one after the other), in the label embedding,
which is transposed, and in the noise condition, 1000 ln(sigma) / 4.
"""

import re
from pathlib import Path
from typing import Any

import torch

from dmd.importers import weights_file

HEAD_CHANNELS = 64
CONDITION_SCALE = 1000.0
ENDS = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv"}
PARTS = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
State = dict[str, torch.Tensor]


def load(path: Path, resolution: int) -> tuple[State, dict[str, Any]]:
    """Weights (`ema.*`, float32) and facts (network, preconditioning, sigma_data, shape, classes) of a file.

    Args:
        resolution: side of the images in pixels, which is not in the file; 64 for the released one.

    Raises:
        ValueError: the file holds something else than tensors, or the weights of another network.
    """
    state = weights_file.read(path, name="time_embed.0.weight")
    if bad := [key for key, value in state.items() if not value.is_floating_point()]:
        raise ValueError(f"{path} holds something else than real numbers: {', '.join(bad[:3])[:200]}")
    try:
        architecture = _architecture(state, resolution)
        blocks = _block_names(architecture)
        weights = {
            f"ema.{name}": value.float().contiguous()
            for key, tensor in state.items()
            for name, value in _convert(key, tensor, blocks)
        }
    except (KeyError, ValueError, IndexError, RuntimeError, ArithmeticError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise ValueError(f"{path} is not a usable teacher of consistency models: {reason}") from error
    return weights, {
        "network": architecture,
        "preconditioning": {"kind": "edm", "condition_scale": CONDITION_SCALE},
        "sigma_data": 0.5,
        "shape": [architecture["channels"], resolution, resolution],
        "num_classes": architecture["num_classes"],
    }


def _architecture(state: State, resolution: int) -> dict[str, Any]:
    """The architecture, from names and shapes of the weights; an upsampling block marks the end of a decoder level."""
    width, stem = state["time_embed.0.weight"].shape[1], state["input_blocks.0.0.weight"]
    numbers = (int(match[1]) for key in state if (match := re.match(r"output_blocks\.(\d{1,4})\.", key)))
    count = 1 + max(numbers, default=-1)
    ends = [
        num
        for num in range(count)
        if any(f"output_blocks.{num}.{index}.in_layers.0.weight" in state for index in (1, 2))
    ]
    levels = len(ends) + 1
    per_level = count // levels
    if count % levels or ends != [per_level * level - 1 for level in range(1, levels)] or per_level < 2:
        raise ValueError(f"{count} decoder blocks with up-sampling blocks in {ends} do not form equal levels")
    firsts = range(count - per_level, -1, -per_level)  # number of each level's first decoder block, finest level first
    channels = [state[f"output_blocks.{num}.0.out_layers.0.weight"].shape[0] for num in firsts]
    if any(channel % width for channel in channels):
        raise ValueError(f"channels {channels} of the levels are not multiples of {width}")
    attends = [f"output_blocks.{num}.1.qkv.weight" in state for num in firsts]
    return {
        "kind": "adm",
        "resolution": resolution,
        "channels": stem.shape[1],
        "width": width,
        "multipliers": [channel // width for channel in channels],
        "blocks": per_level - 1,
        "attention": [resolution >> level for level, attend in enumerate(attends) if attend],
        "num_classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0,
        "dropout": 0.1,
    }


def _block_names(architecture: dict[str, Any]) -> dict[str, str]:
    """Names of blocks in `UNet` by OpenAI's names (`input_blocks.3.0`, ...); attention is a part of its block."""
    levels = [architecture["resolution"] >> level for level in range(len(architecture["multipliers"]))]
    names = {"input_blocks.0.0": f"enc.{levels[0]}x{levels[0]}_conv"}
    number = 1
    for side in levels:
        if side != levels[0]:
            names[f"input_blocks.{number}.0"] = f"enc.{side}x{side}_down"
            number += 1
        for index in range(architecture["blocks"]):
            names |= {f"input_blocks.{number}.{part}": f"enc.{side}x{side}_block{index}" for part in (0, 1)}
            number += 1
    last = f"dec.{levels[-1]}x{levels[-1]}"
    names |= {"middle_block.0": f"{last}_in0", "middle_block.1": f"{last}_in0", "middle_block.2": f"{last}_in1"}
    number = 0
    for side in reversed(levels):
        attends = side in architecture["attention"]
        for index in range(architecture["blocks"] + 1):
            names[f"output_blocks.{number}.0"] = f"dec.{side}x{side}_block{index}"
            if attends:
                names[f"output_blocks.{number}.1"] = f"dec.{side}x{side}_block{index}"
            if side != levels[0] and index == architecture["blocks"]:
                names[f"output_blocks.{number}.{1 + attends}"] = f"dec.{2 * side}x{2 * side}_up"
            number += 1
    return names


def _convert(key: str, value: torch.Tensor, blocks: dict[str, str]) -> list[tuple[str, torch.Tensor]]:
    """One tensor under its name and in its layout in `UNet`, as a list of one pair."""
    if key == "label_emb.weight":
        return [("map_label.weight", value.T)]
    layer, _, kind = key.rpartition(".")
    if layer in ENDS:
        return [(f"{ENDS[layer]}.{kind}", value)]
    if layer == "input_blocks.0.0":
        return [(f"{blocks[layer]}.{kind}", value)]
    block, part = ".".join(layer.split(".")[:3]), ".".join(layer.split(".")[3:])
    if layer.startswith("middle_block."):
        block, part = ".".join(layer.split(".")[:2]), ".".join(layer.split(".")[2:])
    if block not in blocks or part not in (PARTS | ATTENTION):
        raise ValueError(f"{key[:100]} is not a weight of such a network")
    name = f"{blocks[block]}.{(PARTS | ATTENTION)[part]}.{kind}"
    if part == "qkv":  # (q | k | v, head, channel in head) to (head, channel in head, q | k | v)
        heads = value.shape[0] // (3 * HEAD_CHANNELS)
        split = value.reshape(3, heads, HEAD_CHANNELS, *value.shape[1:])
        value = split.permute(1, 2, 0, *range(3, split.ndim)).reshape(value.shape)
    if part in ("qkv", "proj_out") and kind == "weight":
        value = value.reshape(*value.shape[:2], 1, 1)  # older files have a 1D convolution here
    return [(name, value)]
