"""Denoisers from their artifacts, whatever made them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmd.artifacts import tensors as tensor_files
from dmd.diffusion.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.networks import build
from dmd.networks.autoencoder import Codec
from dmd.networks.lora import merged
from dmd.networks.text_encoder import Text


def load_denoiser(path: Path, *, weights: str = "ema") -> tuple[torch.nn.Module, dict[str, Any]]:
    """A frozen denoiser in eval mode (dropout off), on the CPU.

    Args:
        path: teacher/denoiser.safetensors or distill/generator.safetensors.
        weights: "ema" or "raw"; both kinds of file that were trained hold both.

    Returns:
        The denoiser, and the file's metadata: `shape` (C, H, W), `num_classes`, `sigma_data`, `kind`, ...

    Raises:
        ValueError: the file is damaged, or does not hold these weights.
    """
    tensors, metadata = tensor_files.load(path)
    if metadata["kind"] == "gaussian-mixture":
        exact = GaussianMixtureDenoiser(tensors["means"], tensors["stds"], tensors["weights"])
        return exact.requires_grad_(False).eval(), metadata
    prefix = f"{weights}."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not state:
        raise ValueError(f"{path} holds no {weights!r} weights")
    numbers = {"sigma_data": metadata["sigma_data"], "preconditioning": metadata.get("preconditioning")}
    with _without_memory(metadata["network"]):
        denoiser = new_denoiser(metadata["network"], **numbers)
    load_network(denoiser, state, path)
    denoiser.scheduler = metadata.get("scheduler")
    return denoiser.requires_grad_(False).eval(), metadata


def _without_memory(network: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Networks of text are large, and all that they hold stands in their files: none is drawn first and dropped."""
    return torch.device("meta") if network["kind"] in ("unet2d-condition", "sd3") else contextlib.nullcontext()


def new_denoiser(
    network: dict[str, Any], *, sigma_data: float, preconditioning: dict[str, Any] | None = None
) -> Denoiser:
    """A denoiser with fresh weights from torch's global generator."""
    return Denoiser(build(network), sigma_data=sigma_data, preconditioning=preconditioning)


def load_network(denoiser: Denoiser, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copies weights into the network; ValueError if `path` holds another architecture."""
    try:
        denoiser.network.load_state_dict(state, assign=next(denoiser.parameters()).is_meta)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0][:200]  # torch lists every weight
        raise ValueError(f"{path} holds another architecture: {reason}") from error


def add_adapter(denoiser: torch.nn.Module, adapter: Mapping[str, torch.Tensor], path: Path) -> None:
    """Adds an adapter, as `dmd.networks.lora.merged` takes it, to the weights of a denoiser.

    Raises:
        ValueError: the denoiser has no network, or another one than the adapter is of.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{path} holds no network that an adapter could be added to")
    load_network(denoiser, merged(denoiser.network.state_dict(), adapter, scale=1.0), path)


def load_codec(path: Path) -> Codec:
    """What decodes latents, frozen and in eval mode, on the CPU.

    Args:
        path: teacher/autoencoder.safetensors or teacher/tiny_autoencoder.safetensors.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    tensors, metadata = _of_kind(path, "autoencoder")
    with torch.device("meta"):
        codec = Codec(**metadata["autoencoder"])
    codec.load_state_dict(tensors, assign=True)
    return codec.requires_grad_(False).eval()


def load_text(path: Path) -> Text:
    """The text encoder of teacher/text_encoder.safetensors, frozen and in eval mode, on the CPU.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    tensors, metadata = _of_kind(path, "text-encoder")
    text = Text(**metadata["text_encoder"])
    text.load_state_dict(tensors)
    return text.requires_grad_(False).eval()


def load_empty(path: Path) -> torch.Tensor:
    """Text states (L, E) of the empty prompt, for guidance, of teacher/denoiser.safetensors.

    Raises:
        ValueError: the file is damaged, or its denoiser knows no prompts.
    """
    if "text" not in tensor_files.load_metadata(path):
        raise ValueError(f"{path} knows no prompts: it has no text states of the empty one")
    return tensor_files.load_some(path, "text.empty")[0]


def _of_kind(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, metadata = tensor_files.load(path)
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} is of kind {metadata.get('kind')!r}, no {kind}")
    return tensors, metadata


def check_noise_scale(metadata: dict[str, Any], sigma: float, path: Path) -> None:
    """ValueError if `sigma` is beyond the largest noise level that the denoiser in `path` was trained on."""
    limit = metadata.get("sigma_max")
    if limit is not None and sigma > limit * (1 + 1e-6):
        raise ValueError(
            f"{path} knows noise up to sigma {limit:.6g}, not {sigma:.6g}: "
            "lower distill.sigma and sigma_max of the solvers to it"
        )
