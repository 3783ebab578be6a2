"""Text encoders in folders of Stable Diffusion: a CLIPTextModel and its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

from dmd.importers import pipeline_files as pipelines
from dmd.models import outside_config
from dmd.models.text_encoder import TOKENIZER_FILES, Text, clip_tokenizer
from dmd.provenance import outside_files


def source_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Files of the text encoder and its tokenizer in the folder of a pipeline; ValueError if one is missing."""
    tokenizer = tokenizer_files(folder / "tokenizer")
    network = pipelines.network_files(
        folder / "text_encoder", "CLIPTextModel", weights="model.safetensors", variant=variant
    )
    return [*network, *tokenizer]


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a CLIP tokenizer in its folder; ValueError if one is missing."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            pipelines.existing_file(folder / name, f"{name} of the CLIP tokenizer (or give tokenizer.json)")
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def load(folder: Path, variant: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (float32, names as in `Text`), and facts: `text_encoder` {config, tokenizer}, `text` {length, width}.

    Raises:
        ValueError: a file is missing, is of another class, or does not fit.
    """
    files = source_files(folder, variant)
    path = folder / "text_encoder" / "config.json"
    config = pipelines.read_json(path)
    if (kind := config.get("model_type", "clip_text_model")) != "clip_text_model":
        raise ValueError(f"{path}: model_type {kind!r} is not clip_text_model")
    outside_config.check(path, config, "CLIPTextConfig")
    arguments = {key: value for key, value in config.items() if key[:1] != "_"}
    section = {"config": arguments, "tokenizer": tokenizer_texts(files, config.get("max_position_embeddings", 77))}
    try:
        with torch.device("meta"):
            text = Text(**section)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    state = {_own_name(name): value for name, value in pipelines.tensors_of(files).items()}
    state.pop("encoder.embeddings.position_ids", None)  # older releases save them: 0, 1, 2, ...
    pipelines.check_weights(text, state, folder / "text_encoder")
    return state, {"text_encoder": section, "text": {"length": text.length, "width": text.width}}


def _own_name(name: str) -> str:
    """The name in `Text`; files of transformers before version 5 have the prefix `text_model.`."""
    return f"encoder.{name.removeprefix('text_model.')}"


def tokenizer_texts(files: list[Path], length: int) -> dict[str, str]:
    """Contents of vocab.json, merges.txt and, if present, special_tokens_map.json and tokenizer_config.json, by name.

    What tokenizer.json and added_tokens.json say is written into these.

    Args:
        files: among them those of `tokenizer_files`.
        length: number of tokens that the network takes.

    Raises:
        ValueError: a file cannot be read, or has a key that is refused.
    """
    texts: dict[str, str] = {}
    for path in files:
        if path.name not in TOKENIZER_FILES:
            continue
        texts[path.name] = outside_files.read_text(path)
        if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
            _check_keys(path, length)
    if not {"tokenizer.json", "added_tokens.json"} & texts.keys():
        return texts
    place = next(path for path in files if path.name in ("tokenizer.json", "added_tokens.json"))
    with outside_files.reading(place, "a tokenizer"):
        _write_into(texts)
    return texts


def _write_into(texts: dict[str, str]) -> None:
    """Puts what tokenizer.json and added_tokens.json say into the other files, in their place."""
    tokenizer = clip_tokenizer(texts)
    config = json.loads(texts.get("tokenizer_config.json", "{}")) | tokenizer.special_tokens_map
    config["added_tokens_decoder"] = {key: each.__getstate__() for key, each in tokenizer.added_tokens_decoder.items()}
    texts["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False)
    texts.pop("added_tokens.json", None)
    if single := texts.pop("tokenizer.json", None):
        model = outside_files.parse_json(single.encode())["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        texts["vocab.json"] = json.dumps(model["vocab"], ensure_ascii=False)
        texts["merges.txt"] = "\n".join(["#version: 0.2", *pairs, ""])


def _check_keys(path: Path, length: int) -> None:
    config = pipelines.read_json(path)
    outside_config.check(path, config, "CLIPTokenizer")
    most = config.get("model_max_length") or length
    if most != length and not (isinstance(most, (int, float)) and most > 1e20):  # a larger number stands for none
        raise ValueError(f"{path}: model_max_length {most!r:.80} is not supported: the network takes {length} tokens")
