"""Tensors with their metadata in one safetensors file, without pickle."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dmd.provenance import files

KEY = "dmd"  # the only key, since safetensors writes several in random order


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Writes to exactly `path` (callers pass the temporary path of `files.atomic` or `record.publish`)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, path, metadata={KEY: files.canonical_json(metadata)})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)  # safetensors sets 0600, so that other users of a cluster could not read it


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Writes atomically; for artifacts of a stage use `record.publish` with `write`."""
    with files.atomic(path) as temporary:
        write(temporary, tensors, metadata)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file from `write`.

    Raises:
        ValueError: the file is missing, truncated, or has no `dmd` metadata.
    """
    metadata = load_metadata(path)
    try:
        return safetensors.torch.load_file(path), metadata
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): run `make verify`") from error


def load_some(path: Path, *names: str) -> list[torch.Tensor]:
    """The named tensors of a file, without reading the others.

    Raises:
        ValueError: the file is missing, truncated, or lacks a named tensor.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            return [stream.get_tensor(name) for name in names]
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): run `make verify`") from error


def load_metadata(path: Path) -> dict[str, Any]:
    """Only the metadata: cheap for any size of file."""
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): run `make verify`") from error
    if text is None:
        raise ValueError(f"{path} has no '{KEY}' metadata: it was not written by a stage of this project")
    return files.json_object(text, path)
