"""OpenAI's EDM teacher of consistency models (Song et al. 2023) as the ADM network of ours.

The file is a state dict of the U-Net of guided diffusion. It is the architecture of Dhariwal and Nichol 2021, so only
names differ, the order of channels in attention (query, key and value one after the other), the orientation of the
label embedding, and the condition, which is 1000 ln(sigma) / 4.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

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
        resolution: side of the images in pixels, of which the file says nothing; 64 for the released one.

    Raises:
        ValueError: the file holds anything but tensors, or the weights of another network.
    """
    state = _read(path)
    try:
        architecture = _architecture(state, resolution)
        blocks = _block_names(architecture)
        weights = {
            f"ema.{name}": value.float().contiguous()
            for key, found in state.items()
            for name, value in _converted(key, found, blocks)
        }
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise ValueError(f"{path} is no teacher of consistency models that can be used: {reason}") from error
    return weights, {
        "network": architecture,
        "preconditioning": {"kind": "edm", "condition_scale": CONDITION_SCALE},
        "sigma_data": 0.5,
        "shape": [architecture["channels"], resolution, resolution],
        "num_classes": architecture["num_classes"],
    }


def _read(path: Path) -> State:
    """A dict of tensors; torch's restricted reader runs nothing that a file names."""
    try:
        _check_claims(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{path} cannot be read as a file of weights alone: {reason}") from error
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path} holds no dict of names and tensors")
    if bad := [key for key, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{path} holds something else than tensors: {', '.join(bad[:3])[:200]}")
    if bad := [key for key, value in found.items() if not _stored(value)]:
        raise ValueError(f"{path} holds tensors whose numbers are not all stored: {', '.join(bad[:3])[:200]}")
    if sum(value.nbytes for value in found.values()) > path.stat().st_size:
        raise ValueError(f"{path} holds tensors of more bytes than the file has")
    return found


def _check_claims(path: Path) -> None:
    """ValueError if the parts of a zip file claim more bytes than it has: torch stores them as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            claimed = sum(part.file_size for part in parts.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"its parts claim {claimed} bytes, more than the file has")


def _stored(value: torch.Tensor) -> bool:
    """Whether a tensor is dense, in memory, of floating-point numbers, and claims no more of them than it stores."""
    if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
        return False
    return 0 < value.nbytes <= value.untyped_storage().nbytes()


def _architecture(state: State, resolution: int) -> dict[str, Any]:
    """Numbers of the network, from names and shapes: decoder blocks that end in a second block end a level."""
    width, stem = state["time_embed.0.weight"].shape[1], state["input_blocks.0.0.weight"]
    numbers = (int(found[1]) for key in state if (found := re.match(r"output_blocks\.(\d{1,4})\.", key)))
    count = 1 + max(numbers, default=-1)
    ends = [
        num
        for num in range(count)
        if any(f"output_blocks.{num}.{place}.in_layers.0.weight" in state for place in (1, 2))
    ]
    levels = len(ends) + 1
    per_level = count // levels
    if count % levels or ends != [per_level * level - 1 for level in range(1, levels)] or per_level < 2:
        raise ValueError(f"{count} decoder blocks with up-sampling blocks in {ends} make no equal levels")
    firsts = range(count - per_level, -1, -per_level)  # of each level in the decoder, finest first
    channels = [state[f"output_blocks.{num}.0.out_layers.0.weight"].shape[0] for num in firsts]
    if any(channel % width for channel in channels):
        raise ValueError(f"channels {channels} of the levels are no multiples of {width}")
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
    """Our name of each block by OpenAI's, `input_blocks.3.0` and so on; attention has the name of its block."""
    levels = [architecture["resolution"] >> level for level in range(len(architecture["multipliers"]))]
    names = {"input_blocks.0.0": f"enc.{levels[0]}x{levels[0]}_conv"}
    number = 1
    for side in levels:
        if side != levels[0]:
            names[f"input_blocks.{number}.0"] = f"enc.{side}x{side}_down"
            number += 1
        for index in range(architecture["blocks"]):
            names |= {f"input_blocks.{number}.{place}": f"enc.{side}x{side}_block{index}" for place in (0, 1)}
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


def _converted(key: str, value: torch.Tensor, blocks: dict[str, str]) -> list[tuple[str, torch.Tensor]]:
    """Our name and layout of one tensor."""
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
        raise ValueError(f"{key[:100]} is no weight of such a network")
    name = f"{blocks[block]}.{(PARTS | ATTENTION)[part]}.{kind}"
    if part == "qkv":  # (q | k | v, head, channel in head) to (head, channel in head, q | k | v)
        heads = value.shape[0] // (3 * HEAD_CHANNELS)
        split = value.reshape(3, heads, HEAD_CHANNELS, *value.shape[1:])
        value = split.permute(1, 2, 0, *range(3, split.ndim)).reshape(value.shape)
    if part in ("qkv", "proj_out") and kind == "weight":
        value = value.reshape(*value.shape[:2], 1, 1)  # older files have it as a convolution over one axis
    return [(name, value)]
