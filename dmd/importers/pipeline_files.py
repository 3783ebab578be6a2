"""Folders that diffusers or transformers saved: JSON and safetensors, nothing else is read and nothing is run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.provenance import files, pinned

WEIGHTS = "diffusion_pytorch_model.safetensors"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
MAX_LAYERS, MAX_LEVELS = 64, 16  # the released ones have 2 and 6
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention before diffusers 0.15


def needed(path: Path, what: str) -> Path:
    """The path; ValueError naming it and what belongs there if it is no file."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {what}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; ValueError if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def network_files(folder: Path, what: str, *, weights: str = WEIGHTS) -> list[Path]:
    """Configuration and weights of one network, `what`: one file, or parts with an index.

    Raises:
        ValueError: one is missing, or the index names files elsewhere.
    """
    config = needed(folder / "config.json", f"the configuration of the {what}")
    shards = folder / f"{weights}.index.json"
    if not shards.exists():
        why = "other formats are not read: save them as safetensors"
        return [config, needed(folder / weights, f"the weights of the {what} ({why})")]
    places = read_json(shards).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or name == ".." for name in names):
        raise ValueError(f"{shards}: weight_map names no files beside it")
    return [config, shards, *(needed(folder / name, f"a part of the weights of the {what}") for name in names)]


def network_config(path: Path, kind: str) -> dict[str, Any]:
    """Arguments of a network of diffusers, without diffusers' own notes; ValueError if it is of another kind."""
    config = read_json(path)
    if config.get("_class_name", kind) != kind:
        raise ValueError(f"{path}: {config['_class_name']!r} is no {kind}")
    return {key: value for key, value in config.items() if key[:1] != "_"}


def tensors_of(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors among `paths`, float32, old names of attention layers replaced."""
    found: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            try:
                found |= safetensors.torch.load_file(path)
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
    return {_renamed(name): value.float() if value.is_floating_point() else value for name, value in found.items()}


def check_extent(config: dict[str, Any]) -> None:
    """ValueError if so many layers are asked for that making them, even without weights, would take long."""
    levels = config.get("block_out_channels", ())
    if isinstance(levels, list) and len(levels) > MAX_LEVELS:
        raise ValueError(f"more than {MAX_LEVELS} block_out_channels")
    for key in ("layers_per_block", "transformer_layers_per_block"):
        found = config.get(key, 1)
        counts = found if isinstance(found, list) else [found]
        if any(isinstance(count, int) and count > MAX_LAYERS for count in counts):
            raise ValueError(f"more than {MAX_LAYERS} {key}")


def check_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """ValueError unless the weights are finite and those of `network`, one without memory (device meta)."""
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: weights that are not finite: {', '.join(bad[:5])}")
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0][:200]
        raise ValueError(f"{source} holds another architecture: {reason}") from error


def levels(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The preconditioning that a scheduler's configuration describes; diffusers computes its noise levels.

    Raises:
        ValueError: the scheduler is none of the `known`, or its levels cannot be used.
    """
    torchvision_operators.ensure()
    import diffusers

    config = read_json(path)
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{path}: scheduler {name!r} is none of {', '.join(known)}")
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


def digests(source: Path, paths: Sequence[Path], sha256: str | None, *, key: str) -> tuple[dict[Path, str], str]:
    """Digests of the files of a source, and its own: that over the names and digests of its files for a folder.

    Raises:
        ValueError: it does not begin with `sha256`, which `key` of the configuration pins.
    """
    if not source.is_dir():
        digest = pinned.check(source, sha256, key=key)
        return {source: digest}, digest
    found = {path: files.sha256(path) for path in paths}
    named = {path.relative_to(source).as_posix(): each for path, each in found.items()}
    digest = hashlib.sha256(files.canonical_json(named).encode()).hexdigest()
    if not digest.startswith(sha256 or ""):
        raise ValueError(f"{source} has sha256 {digest}, but {key} pins {pinned.printed(sha256 or '')}")
    return found, digest


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    block, _, part = layer.rpartition(".")
    return f"{block}.{RENAMED[part]}.{kind}" if ".attentions." in name and part in RENAMED else name
