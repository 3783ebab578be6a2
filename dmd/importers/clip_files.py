"""CLIP from a local folder of transformers. Only safetensors, JSON and text are read; nothing is run or downloaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd import torchvision_operators
from dmd.data.prompts import Prompts
from dmd.importers import pipeline_files as pipelines
from dmd.importers import text_files
from dmd.metrics.clip import Clip
from dmd.metrics.features import eight_bit, quantise
from dmd.metrics.resizing import resize
from dmd.models import outside_config, sizes
from dmd.models.text_encoder import clip_tokenizer

PREPROCESSORS = ("processor_config.json", "preprocessor_config.json")  # the first with a processor of images counts
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
BICUBIC = 3  # Pillow's number
PARTS = {"text_config": "CLIPTextConfig", "vision_config": "CLIPVisionConfig"}
PARTS |= {"text_config_dict": "CLIPTextConfig", "vision_config_dict": "CLIPVisionConfig"}  # an older form, which counts
KEY = "evaluate.clip.sha256"


@dataclass(frozen=True)
class CaptionScorer:
    """Scores samples against their captions with CLIP.

    Attributes:
        prefix: put before each caption.
        resize: {"size", "filter"} of a first resizing of the images, or None.
    """

    clip: Clip
    captions: Prompts
    prefix: str
    resize: Mapping[str, Any] | None = None

    def __call__(self, image: Tensor, label: Tensor) -> Tensor:
        """Cosines (B,) between images in [-1, 1] and their captions, whose row numbers are `label` (B,)."""
        texts = [self.prefix + text for text in self.captions.rows(label.tolist())]
        levels = eight_bit(quantise(image, 256))
        return self.clip(levels if self.resize is None else resize(levels, **self.resize), texts)


def source_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of a network: configuration, safetensors, tokenizer, and image preprocessor if there is one.

    Args:
        variant: of the weights, see `dmd.importers.pipeline_files.network_files`.

    Raises:
        ValueError: a file is missing, also if the weights are there in another format.
    """
    network = pipelines.network_files(folder, "CLIPModel", weights="model.safetensors", variant=variant)
    pipelines.check_variant(folder, network, variant)
    images = [folder / name for name in PREPROCESSORS if (folder / name).is_file()]
    return [*network, *images, *text_files.tokenizer_files(folder)]


def caption_scorer(
    folder: Path, captions: Path, section: Mapping[str, Any], *, device: torch.device
) -> tuple[CaptionScorer, dict[str, Any], dict[str, str]]:
    """The scorer of a section {"sha256", "prefix", "resize", "variant"}; the identity of `load` with how pictures and
    captions are prepared; digests of files by path.
    """
    clip, identity, digests = load(folder, sha256=section["sha256"], variant=section.get("variant"))
    shown = {"prefix": section["prefix"], "resize": section.get("resize")}
    return CaptionScorer(clip.to(device), Prompts(captions), **shown), {**identity, **shown}, digests


def load(
    folder: Path, *, sha256: str | None, variant: str | None = None
) -> tuple[Clip, dict[str, Any], dict[str, str]]:
    """The network in eval mode, on the CPU; its identity {"name", "sha256", "pinned"}; digests of its files by path.

    Args:
        folder: of CLIPModel, CLIPTokenizer and CLIPImageProcessor, saved by transformers.
        variant: of the weights, see `source_files`.
        sha256: digest of names and digests of its files, or the first digits; None accepts any.

    Raises:
        ValueError: a file is missing, is of another class, or does not fit; or the digest differs.
    """
    files = source_files(folder, variant)
    digests, digest = pipelines.digests(folder, files, sha256, key=KEY)
    network = _network(folder, files)
    text = network.config.text_config
    tokenizer = clip_tokenizer(text_files.tokenizer_texts(files, text.max_position_embeddings))
    end = tokenizer.eos_token_id
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"{folder}: {len(tokenizer)} tokens, but the network has {text.vocab_size}")
    if end != (len(tokenizer) - 1 if text.eos_token_id == 2 else text.eos_token_id):  # 2 is wrong: transformers < 4.31
        raise ValueError(f"{folder}: texts end in token {end}, but the network expects {text.eos_token_id}")

    def tokenise(captions: Any) -> list[list[int]]:
        tokens: list[list[int]] = tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return tokens

    mean, std = _normalisation(folder, network.config.vision_config.image_size)
    clip = Clip(network, tokenise=tokenise, end=end, mean=mean, std=std).requires_grad_(False).eval()
    identity = {"name": folder.name, "sha256": digest, "pinned": sha256 is not None}
    return clip, identity, {str(path): value for path, value in digests.items()}


def _network(folder: Path, files: list[Path]) -> Any:
    """The CLIPModel with the weights of the files."""
    torchvision_operators.ensure()
    from transformers import CLIPConfig, CLIPModel

    config = pipelines.read_json(folder / "config.json")
    if (kind := config.get("model_type", "clip")) != "clip":
        raise ValueError(f"{folder}/config.json: model_type {kind!r} is not clip")
    outside_config.check(folder / "config.json", config, "CLIPConfig")
    for part, kind in PARTS.items():
        where, values = f"{folder}/config.json: {part}", config.get(part) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{where} {values!r:.80} is no mapping")
        outside_config.check(where, values, kind)
        sizes.check(where, values)
    arguments = {key: config[key] for key in (*PARTS, "projection_dim") if config.get(key) is not None}
    with torch.device("meta"), sizes.making(f"{folder}: CLIPModel", arguments):  # the files hold all but position_ids
        network = CLIPModel(CLIPConfig(**arguments))
    state = {name: value for name, value in pipelines.tensors_of(files).items() if not name.endswith("position_ids")}
    pipelines.check_weights(network, state, folder)
    for part in (network.text_model.embeddings, network.vision_model.embeddings):
        part.position_ids = torch.arange(part.position_ids.shape[-1])[None]
    return network


def _normalisation(folder: Path, size: int) -> tuple[Any, Any]:
    """Mean and standard deviation of the channels; ValueError if images are processed in another way than here."""
    for path in (folder / name for name in PREPROCESSORS):
        config = pipelines.read_json(path) if path.is_file() else {}
        if path.name == PREPROCESSORS[0]:  # of texts and images
            config = config.get("image_processor") or {}
        if config:
            return _checked_normalisation(path, config, size)
    return MEAN, STD


def _checked_normalisation(path: Path, config: dict[str, Any], size: int) -> tuple[Any, Any]:
    outside_config.check(path, config, "CLIPImageProcessor")
    sides = {_side(config.get(key) or size) for key in ("size", "crop_size")}
    filter = BICUBIC if config.get("resample") is None else config["resample"]
    if sides != {size} or filter != BICUBIC:
        what = f"images of {sorted(sides, key=str)} pixels by filter {filter!r}"
        raise ValueError(f"{path}: {what:.200}, but the network takes {size}, by filter {BICUBIC} (bicubic)")
    mean, std = config.get("image_mean") or MEAN, config.get("image_std") or STD
    if not all(_is_colour(values) for values in (mean, std)) or 0 in std:
        raise ValueError(f"{path}: image_mean {mean!r:.80} and image_std {std!r:.80} are not of three channels")
    return mean, std


def _is_colour(values: Any) -> bool:
    """Whether the value is three finite numbers."""
    numbers = isinstance(values, (list, tuple)) and all(isinstance(one, (int, float)) for one in values)
    return numbers and len(values) == 3 and all(math.isfinite(one) for one in values)


def _side(size: Any) -> Any:
    """A size as one number, from a number or a mapping; text if it is neither, or its sides differ."""
    known = isinstance(size, dict) and set(size) in ({"shortest_edge"}, {"height", "width"})
    sides = [*size.values()] if known else [size]
    return sides[0] if isinstance(sides[0], int) and sides == sides[:1] * len(sides) else repr(size)
