"""Text encoders in folders of Stable Diffusion: a CLIPTextModel and its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

from dmd.importers import pipeline_files as pipelines
from dmd.models.text_encoder import Text
from dmd.provenance import outside_files

MAX_LAYERS = 128  # released encoders have 12 to 32
PARTS = ("vocab.json", "merges.txt")
OPTIONAL = ("special_tokens_map.json", "tokenizer_config.json")


def source_files(folder: Path) -> list[Path]:
    """Files of the text encoder and its tokenizer in the folder of a pipeline; ValueError if one is missing."""
    tokenizer = tokenizer_files(folder / "tokenizer")
    network = pipelines.network_files(folder / "text_encoder", "CLIPTextModel", weights="model.safetensors")
    return [*network, *tokenizer]


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a CLIP tokenizer in its folder; ValueError if one is missing."""
    single = folder / "tokenizer.json"
    if (folder / "vocab.json").is_file() or not single.is_file():
        what = "of the CLIP tokenizer (or give tokenizer.json)"
        paths = [pipelines.needed(folder / name, f"{name} {what}") for name in PARTS]
    else:
        paths = [single]
    return paths + [folder / name for name in OPTIONAL if (folder / name).is_file()]


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (float32, names as in `Text`), and facts: `text_encoder` {config, tokenizer}, `text` {length, width}.

    Raises:
        ValueError: a file is missing, is of another class, or does not fit.
    """
    files = source_files(folder)
    path = folder / "text_encoder" / "config.json"
    config = pipelines.read_json(path)
    if (kind := config.get("model_type", "clip_text_model")) != "clip_text_model":
        raise ValueError(f"{path}: model_type {kind!r} is not clip_text_model")
    if not isinstance(layers := config.get("num_hidden_layers", 12), int) or layers > MAX_LAYERS:
        raise ValueError(f"{path}: num_hidden_layers {layers!r} is no integer up to {MAX_LAYERS}")
    arguments = {key: value for key, value in config.items() if key[:1] != "_"}
    section = {"config": arguments, "tokenizer": tokenizer_texts(files)}
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


def tokenizer_texts(files: list[Path]) -> dict[str, str]:
    """Contents of the tokenizer's files in `files`, by name; tokenizer.json is split into vocab.json and merges.txt.

    Raises:
        ValueError: a file cannot be read, or tokenizer.json has no vocabulary with merges.
    """
    texts: dict[str, str] = {}
    for path in files:
        if path.name in (*PARTS, *OPTIONAL, "tokenizer.json"):
            texts[path.name] = outside_files.read_text(path)
    if "tokenizer.json" not in texts:
        return texts
    path = next(path for path in files if path.name == "tokenizer.json")
    with outside_files.reading(path, "a vocabulary with merges"):
        model = json.loads(texts.pop("tokenizer.json"))["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocab = json.dumps(model["vocab"], ensure_ascii=False)
    return {"vocab.json": vocab, "merges.txt": "\n".join(["#version: 0.2", *pairs, ""]), **texts}
