"""Folders of models as diffusers and transformers save them, file by file, each with its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmd.provenance import record, tensor_files

TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class FolderWriter:
    """Writes the files of a folder atomically.

    Attributes:
        stage: that writes them.
        dtype: of the weights; None leaves theirs.
    """

    folder: Path
    stage: str
    inputs: record.Inputs
    dtype: torch.dtype | None = None

    def write_text(self, name: str, text: str) -> None:
        """Writes the file `name`, a path below the folder."""
        with record.publish(self.folder / name, stage=self.stage, inputs=self.inputs) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a configuration."""
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def write_weights(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes weights."""
        stored = {key: value.to(self.dtype or value.dtype) for key, value in tensors.items()}
        with record.publish(self.folder / name, stage=self.stage, inputs=self.inputs) as temporary:
            tensor_files.write_for_others(temporary, stored)

    def write_text_encoder(self, path: Path) -> None:
        """Writes text_encoder/ and tokenizer/ from the file of a text encoder."""
        tensors, facts = tensor_files.load(path)
        parts = facts["text_encoder"]
        # the names of published folders: transformers 5 also reads others, transformers 4 does not
        encoder = {f"text_model.{name}": value for name, value in tensor_files.part("encoder.", tensors).items()}
        self.write_json("text_encoder/config.json", {"architectures": ["CLIPTextModel"], **parts["config"]})
        self.write_weights("text_encoder/model.safetensors", encoder)
        self.write_tokenizer("tokenizer/", parts["tokenizer"])

    def write_tokenizer(self, place: str, contents: Mapping[str, str]) -> None:
        """Writes the files of a tokenizer; `place` is "" or ends with a slash."""
        for name in TOKENIZER:
            self.write_text(f"{place}{name}", contents.get(name, "{}"))

    def write_autoencoder(self, path: Path) -> None:
        """Writes vae/ from the file of an AutoencoderKL."""
        tensors, facts = tensor_files.load(path)
        self.write_json("vae/config.json", {"_class_name": "AutoencoderKL", **facts["autoencoder"]["config"]})
        self.write_weights(f"vae/{WEIGHTS}", tensor_files.part("autoencoder.", tensors))
