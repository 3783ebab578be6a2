"""Loads denoisers, autoencoders and text encoders from their artifacts."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmd.models import networks, sizes
from dmd.models.adapters import with_network
from dmd.models.autoencoder import Codec
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.lora import merge_adapter
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.models.text_encoder import Text
from dmd.provenance import outside_files, tensor_files

MIXTURE = ("means", "stds", "weights")
LARGE = ("unet2d-condition", "sd3")  # built on the meta device, without random weights: their files hold every tensor
MOST_SIGMA = 1e9  # a noise level
MOST_GUIDANCE = 1e6
LEVELS = ("sigma_data", "sigma", "sigma_min", "sigma_max")
STUDENT_FACTS = (  # keys that a student's file has from the file that it started from
    *("network", "preconditioning", "scheduler", "sigma_data", "sigma_min", "sigma_max"),
    *("shape", "image_shape", "num_classes", "text", "source_sha256"),
    "guidance_range",
)


@dataclass(frozen=True)
class DenoiserFile:
    """The path of a denoiser's file, and its metadata."""

    path: Path
    facts: Mapping[str, Any]


def denoiser_file(path: Path) -> DenoiserFile:
    """Reads the metadata of a denoiser's file; ValueError if the file holds no denoiser."""
    metadata = tensor_files.load_metadata(path)
    check_facts(metadata, path)
    return DenoiserFile(path, metadata)


def load_student(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights (`ema.*`) and facts of a teacher's file, from a student that is a denoiser at all noise levels.

    Args:
        path: distill/generator.safetensors.
        weights: of the student: "ema", "raw" or "best".

    Raises:
        ValueError: the file is damaged, lacks these weights, or is not of such a student.
    """
    tensors, metadata = tensor_files.load(path)
    check_facts(metadata, path)
    if not metadata.get("denoises"):
        raise ValueError(
            f"{path} is no denoiser at all noise levels, as a teacher must be: only methods rectified-flow with "
            "objective reflow and meng train such students"
        )
    if "text" in metadata or "image_shape" in metadata:
        raise ValueError(f"{path} takes prompts or makes latents: a teacher of kind experiment does not support them")
    chosen = {f"ema.{name}": value for name, value in tensor_files.part(f"{weights}.", tensors).items()}
    if not chosen:
        raise ValueError(f"{path} holds no {weights!r} weights")
    return chosen, {key: metadata[key] for key in STUDENT_FACTS if key in metadata}


def load_denoiser(
    path: Path, *, weights: str = "ema", calls: int | None = None
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A frozen denoiser in eval mode (dropout off), on the CPU.

    Args:
        path: teacher/denoiser.safetensors or distill/generator.safetensors.
        weights: "ema" or "raw"; files of trained denoisers hold both; "best" of a student whose training was monitored.
        calls: number of network calls, for a student that supports several; None is the number at the end of training.
            Students of earlier rounds of progressive distillation have averaged weights only.

    Returns:
        The denoiser, and the file's metadata: `shape` (C, H, W), `num_classes`, `sigma_data`, `kind`, ...; if `calls`
        is given, the keys `calls` and `sigma` describe the loaded weights. The guidance of a denoiser that takes it as
        an input is the middle of its range.

    Raises:
        ValueError: the file is damaged, or does not hold these weights.
    """
    tensors, metadata = tensor_files.load(path)
    check_facts(metadata, path)
    if calls is not None:
        chosen = student_calls(metadata, path, calls=calls)
        if str(calls) in metadata.get("calls_kept", {}):
            weights = f"{weights}@{calls}"
        metadata |= {"sigma": chosen.sigmas[0], "calls": chosen.facts()}
    if metadata["kind"] == "gaussian-mixture":
        if missing := [name for name in MIXTURE if name not in tensors]:
            raise ValueError(f"{path} holds no mixture: {', '.join(missing)} missing")
        exact = GaussianMixtureDenoiser(tensors["means"], tensors["stds"], tensors["weights"])
        return exact.requires_grad_(False).eval(), metadata
    if not (state := tensor_files.part(f"{weights}.", tensors)):
        raise ValueError(f"{path} holds no {weights!r} weights")
    scaling = {"sigma_data": metadata["sigma_data"], "preconditioning": metadata.get("preconditioning")}
    network = metadata["network"]
    if network.get("kind") not in LARGE:
        check_network(network, state, path)
    try:
        with torch.device("meta") if network.get("kind") in LARGE else contextlib.nullcontext():
            denoiser = new_denoiser(network, **scaling)
    except ValueError as error:
        raise ValueError(f"{path}: network or preconditioning: {error}") from error
    load_network(denoiser, state, path)
    denoiser.scheduler = metadata.get("scheduler")
    if (guidances := guidance_range(metadata)) is not None:
        denoiser.guidance = sum(guidances) / 2
    return denoiser.requires_grad_(False).eval(), metadata


def student_calls(metadata: Mapping[str, Any], path: Path, *, calls: int | None = None) -> Calls:
    """How a student is sampled with `calls` network calls; None is the number at the end of its training.

    Raises:
        ValueError: the file is not a student's, or is damaged, or the student does not support this number of calls.
    """
    facts, earlier, others = metadata.get("calls"), metadata.get("calls_kept", {}), metadata.get("fewer_calls", {})
    if not isinstance(facts, dict) or not isinstance(earlier, dict) or not isinstance(others, dict):
        raise ValueError(f"{path} is no student: its metadata has no calls")
    try:
        last = Calls.of(facts)
        if calls is None or len(last.sigmas) == calls:
            return last
        if str(calls) in earlier or str(calls) in others:
            return Calls.of((earlier | others)[str(calls)])
        fewer = range(1, len(last.sigmas)) if last.stops_early else ()
        if calls in fewer:
            return last.first(calls)
    except Exception as error:
        raise ValueError(f"{path}: {outside_files.reason(error)}") from error
    supported = ", ".join(map(str, [*earlier, *fewer, len(last.sigmas)]))
    raise ValueError(f"{path} is no student of {calls} calls, but of {supported}")


def check_facts(metadata: Mapping[str, Any], path: Path) -> None:
    """ValueError unless the metadata has the keys of a denoiser's file, with values of their types."""
    for name in ("shape", "num_classes", "sigma_data", "kind"):
        if name not in metadata:
            raise ValueError(f"{path} holds no denoiser: its metadata has no {name}")
    shape, classes = metadata["shape"], metadata["num_classes"]
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(type(side) is int and 0 < side <= sizes.MOST for side in shape)
    ):
        raise ValueError(f"{path}: shape {shape!r:.80} is no (channels, height, width)")
    if type(classes) is not int or not 0 <= classes <= sizes.MOST:
        raise ValueError(f"{path}: num_classes {classes!r:.80} is no number of classes")
    for name in LEVELS:
        value = metadata.get(name)
        if value is not None and not (type(value) in (int, float) and 0 <= value <= MOST_SIGMA):
            raise ValueError(f"{path}: {name} {value!r:.80} is no noise level")
    if metadata["kind"] != "gaussian-mixture" and not isinstance(metadata.get("network"), dict):
        raise ValueError(f"{path} holds no denoiser: its metadata has no network")
    takes = bool(metadata.get("network", {}).get("guidance_input"))
    if ("guidance_range" in metadata) != takes or (takes and not _is_guidance_range(metadata["guidance_range"])):
        given = metadata.get("guidance_range")
        raise ValueError(f"{path}: guidance_range {given!r:.80} does not fit a network with guidance_input {takes}")


def _is_guidance_range(value: object) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(each) in (int, float) for each in value)
    return numbers and 1 <= value[0] <= value[1] <= MOST_GUIDANCE  # type: ignore[index]


def guidance_range(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """Lowest and highest guidance that a network with the guidance as an input was trained on; None for others."""
    given = metadata.get("guidance_range")
    return None if given is None else (float(given[0]), float(given[1]))


def check_network(network: Mapping[str, Any], state: dict[str, torch.Tensor], path: Path) -> None:
    """ValueError unless `state` has exactly the weights of `network`; the check builds it on the meta device."""
    levels, blocks, layers = network.get("multipliers", ()), network.get("blocks", 0), network.get("layers", 0)
    if isinstance(levels, list | tuple) and isinstance(blocks, int) and isinstance(layers, int):
        if (blocks := max(len(levels) * blocks, layers)) > len(state):
            raise ValueError(f"{path} holds another architecture: {blocks} blocks for {len(state)} tensors")
    try:
        with torch.device("meta"):
            denoiser = new_denoiser(dict(network), sigma_data=1.0)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    load_network(denoiser, state, path)


def new_denoiser(
    network: dict[str, Any], *, sigma_data: float, preconditioning: dict[str, Any] | None = None
) -> Denoiser:
    """A denoiser with fresh weights from torch's global generator."""
    return Denoiser(build(network), sigma_data=sigma_data, preconditioning=preconditioning)


def extended(denoiser: Denoiser, network: Mapping[str, Any], **added: Any) -> Denoiser:
    """The denoiser with a network that has further layers, which change nothing at first; it shares the other weights.

    Args:
        network: its architecture.
        added: see `dmd.models.networks.extended`.

    Raises:
        ValueError: a kind of network that cannot have them.
    """
    state = denoiser.network.state_dict()
    with torch.device("meta"):  # without random weights
        larger = build(networks.extended(network, **added))
    device = next(iter(state.values())).device
    shapes = {name: value.shape for name, value in larger.state_dict().items() if name not in state}
    new = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    larger.load_state_dict(state | new, assign=True)
    return with_network(denoiser, larger.requires_grad_(False).eval())


def load_network(denoiser: Denoiser, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copies weights into the network; ValueError if `path` holds another architecture."""
    try:
        denoiser.network.load_state_dict(state, assign=next(denoiser.parameters()).is_meta)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0][:200]  # the first fault: torch lists all
        raise ValueError(f"{path} holds another architecture: {reason}") from error


def add_adapter(denoiser: torch.nn.Module, adapter: Mapping[str, torch.Tensor], path: Path) -> None:
    """Adds an adapter, as `dmd.models.lora.merge_adapter` takes it, to the weights of a denoiser.

    Raises:
        ValueError: the denoiser has no network, or not the one that the adapter was made for.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{path} holds no network that an adapter could be added to")
    load_network(denoiser, merge_adapter(denoiser.network.state_dict(), adapter, scale=1.0), path)


def load_codec(path: Path) -> Codec:
    """The codec of latents, frozen and in eval mode, on the CPU.

    Args:
        path: teacher/autoencoder.safetensors or teacher/tiny_autoencoder.safetensors.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    tensors, metadata = _of_kind(path, "autoencoder")
    with outside_files.reading(path, "an autoencoder"):
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
    with outside_files.reading(path, "a text encoder"):
        with torch.device("meta"):  # first, so that sizes in the metadata that do not fit take no memory
            Text(**metadata["text_encoder"]).load_state_dict(tensors, assign=True)
        text = Text(**metadata["text_encoder"])
        text.load_state_dict(tensors)
    return text.requires_grad_(False).eval()


def load_empty(path: Path) -> torch.Tensor:
    """The empty condition for guidance, from teacher/denoiser.safetensors.

    Text states (L, E) of the empty prompt, or the scalar label -1 for a denoiser that was trained with label dropout.

    Raises:
        ValueError: the file is damaged, or its denoiser was never trained with an empty condition.
    """
    metadata = tensor_files.load_metadata(path)
    if "text" not in metadata:
        if metadata.get("label_dropout"):
            return torch.tensor(-1)
        raise ValueError(f"{path} cannot be guided: it takes no prompts, and was not trained with label_dropout")
    return tensor_files.load_some(path, "text.empty")[0]


def _of_kind(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, metadata = tensor_files.load(path)
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} is of kind {metadata.get('kind')!r}, not {kind}")
    return tensors, metadata
