"""Folders saved by diffusers or transformers. Only JSON and safetensors are read; no code is run."""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dmd import torchvision_operators
from dmd.config import printing
from dmd.models import outside_config, sizes
from dmd.models.outside_config import ZERO_SNR
from dmd.models.preconditioning import NO_SIGNAL
from dmd.provenance import files, outside_files, pinned, tensor_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
NEW_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # attention before diffusers 0.15


def existing_file(path: Path, what: str) -> Path:
    """The path, if it is a file; otherwise ValueError with the path and its purpose."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {what}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError if there is none."""
    content = outside_files.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def network_files(folder: Path, what: str, *, weights: str = WEIGHTS, variant: str | None = None) -> list[Path]:
    """Configuration and weights of one network: one file of weights, or parts with an index.

    Args:
        what: the network, for messages.
        weights: name of the plain file of weights.
        variant: such as fp16; taken where the folder has it. Otherwise the plain weights are taken, or else the only
            variant.

    Raises:
        ValueError: a file is missing, or the index names files in other folders.
    """
    config = existing_file(folder / "config.json", f"the configuration of the {what}")
    shards = _weights(folder, what, weights, variant)
    if shards.suffix == ".safetensors":
        return [config, shards]
    by_weight = read_json(shards).get("weight_map")
    names = sorted({str(name) for name in by_weight.values()}) if isinstance(by_weight, dict) else []
    if not names or any(Path(name).name != name or name == ".." for name in names):
        raise ValueError(f"{shards}: weight_map must name files beside it")
    return [config, shards, *(existing_file(folder / name, f"a part of the weights of the {what}") for name in names)]


def _weights(folder: Path, what: str, weights: str, variant: str | None) -> Path:
    """The file of weights in a folder, or the index of its parts."""
    stem = weights.removesuffix(".safetensors")
    names = {path.name for path in folder.iterdir()}
    by_variant: dict[str, str] = {}
    for form in (r"(\w+)\.safetensors", r"(\w+)\.safetensors\.index\.json", r"safetensors\.index\.(\w+)\.json"):
        matches = (re.fullmatch(f"{re.escape(stem)}\\.{form}", name) for name in names)
        by_variant |= {match[1]: match[0] for match in matches if match}
    plain = next((name for name in (f"{weights}.index.json", weights) if name in names), None)
    if name := by_variant.get(variant or "") or plain:
        return folder / name
    if len(by_variant) > 1:
        raise ValueError(f"{folder} has the variants {', '.join(sorted(by_variant))}: choose one by the key variant")
    if any(re.match(rf"{re.escape(stem)}(\.\w+)?-\d+-of-\d+", name) for name in names) and not by_variant:
        return existing_file(folder / f"{weights}.index.json", f"the index of the parts of the {what}")
    reason = "other formats are not read: save them as safetensors"
    return existing_file(folder / next(iter(by_variant.values()), weights), f"the weights of the {what} ({reason})")


def check_variant(folder: Path, paths: Sequence[Path], variant: str | None) -> None:
    """ValueError unless weights of the variant are among the files `paths` of `folder`, or it is None."""
    if variant and not any(f".{variant}." in path.name for path in paths):
        raise ValueError(f"{folder} has no weights of variant {variant!r}: drop the key variant, or name another")


def network_config(path: Path, kind: str) -> dict[str, Any]:
    """Configuration of a network of diffusers, without notes; ValueError for another class, or a refused key."""
    config = read_json(path)
    if config.get("_class_name", kind) != kind:
        raise ValueError(f"{path}: {config['_class_name']!r} is not {kind}")
    outside_config.check(path, config, kind)
    return {key: value for key, value in config.items() if key[:1] != "_"}


def tensors_of(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Tensors of all safetensors files in `paths`, float32, with diffusers' present names of attention layers."""
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            tensors |= tensor_files.read(path)[0]
    return {_new_name(name): value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def check_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """ValueError unless the weights are finite and fit `network`, which is on the meta device."""
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: weights that are not finite: {', '.join(bad[:5])}")
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0][:200]
        raise ValueError(f"{source} holds another architecture: {reason}") from error


def try_pass(path: Path, network: Any, condition: torch.Tensor) -> None:
    """Tries a network on the meta device, without numbers, so that what would fail in drawing is found before.

    Args:
        path: its configuration, for messages.
        condition: class (1,) or text states (1, L, E), on the meta device.

    Raises:
        ValueError: the pass failed.
    """
    image = torch.empty(1, network.channels, network.resolution, network.resolution, device="meta")
    with outside_files.told(path), torch.no_grad():
        network(image, torch.empty(1, device="meta"), condition)


def scheduler_preconditioning(path: Path, index: Path, known: Sequence[str]) -> dict[str, Any]:
    """The section `preconditioning` for the file of a scheduler, with the noise levels that diffusers computes from it.

    Args:
        path: scheduler_config.json.
        index: model_index.json of the pipeline, which may be missing. Its class is the one that diffusers would open.
        known: names of classes.

    Raises:
        ValueError: the scheduler is none of `known`, is another one than in `index`, or its levels cannot be used.
    """
    torchvision_operators.ensure()
    import diffusers

    config = scheduler_config(path)
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{path}: scheduler {name!r} is none of {', '.join(known)}")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ValueError(f"{path}: prediction_type {prediction!r} is none of {', '.join(PREDICTIONS)}")
    listed = read_json(index).get("scheduler") if index.exists() else None
    if listed not in (None, [None, None], ["diffusers", name]):
        raise ValueError(f"{index}: scheduler is {listed!r:.80}, but {path} is of class {name}")
    outside_config.check(path, config, "Scheduler")
    no_signal = bool(config.get(ZERO_SNR))
    if no_signal and ZERO_SNR not in outside_config.library_defaults(name):
        raise ValueError(
            f"{path}: {ZERO_SNR} True, but diffusers' {name} ignores it, so that its noise levels are not those of the "
            "network: name a class that has it, such as DDIMScheduler"
        )
    if no_signal and prediction == "epsilon":
        raise ValueError(
            f"{path}: {ZERO_SNR} True, but prediction_type is epsilon: without signal, the noise does not say what the "
            "image is"
        )
    with outside_files.reading(path, "a scheduler"):
        sizes.check("scheduler", config)
        squares = getattr(diffusers, name).from_config(config).alphas_cumprod.double().tolist()
    if no_signal:  # 0, or in some classes 2^-24
        squares[-1] = NO_SIGNAL**-2
    return {"kind": "discrete", "alphas_cumprod": squares, "prediction": PREDICTIONS[prediction]}


def scheduler_config(path: Path) -> dict[str, Any]:
    """Configuration of a scheduler, without -Infinity, which JSON does not have: the default of lambda_min_clipped.

    Raises:
        ValueError: the file cannot be read, or has another number that is not finite.
    """
    config = {key: value for key, value in read_json(path).items() if value != -math.inf}
    if odd := [key for key, value in config.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ValueError(f"{path}: {odd[0][:80]} {config[odd[0]]} is not finite")
    return config


def digests(source: Path, paths: Sequence[Path], sha256: str | None, *, key: str) -> tuple[dict[Path, str], str]:
    """Digest of each file of a source, and of the source itself: for a folder, of the names and digests of its files.

    Raises:
        ValueError: the source's digest does not begin with `sha256`, the value of `key` in the configuration.
    """
    if not source.is_dir():
        digest = pinned.check(source, sha256, key=key)
        return {source: digest}, digest
    by_path = {path: _sha256(path) for path in paths}
    by_name = {path.relative_to(source).as_posix(): value for path, value in by_path.items()}
    digest = hashlib.sha256(files.canonical_json(by_name).encode()).hexdigest()
    if not digest.startswith(sha256 or ""):
        raise ValueError(f"{source} has sha256 {digest}, but {key} pins {printing.digest(sha256 or '')}")
    return by_path, digest


def _sha256(path: Path) -> str:
    with outside_files.reading(path):
        return files.sha256(path)


def _new_name(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    block, _, part = layer.rpartition(".")
    return f"{block}.{NEW_NAMES[part]}.{kind}" if ".attentions." in name and part in NEW_NAMES else name
