"""Tensors with their metadata in one safetensors file, without pickle."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dmd.provenance import files, outside_files

VERIFY = ": run `make verify`"
MAX_HEADER = 1 << 24  # bytes; the library would read one of 90 MB for a minute, deaf to signals
KEY = "dmd"  # the only key, since safetensors writes several in random order


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Writes to exactly `path` (callers pass the temporary path of `files.atomic` or `record.publish`)."""
    _write(path, tensors, {KEY: files.canonical_json(metadata)})


def write_for_others(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes to exactly `path`, as other programs read weights of torch."""
    _write(path, tensors, {"format": "pt"})


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, path, metadata=metadata)
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
    with opened(path, advice=VERIFY) as stream:
        metadata = _metadata(stream, path)
        return {name: stream.get_tensor(name) for name in stream.offset_keys()}, metadata


def part(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_some(path: Path, *names: str) -> list[torch.Tensor]:
    """The named tensors of a file, without reading the others.

    Raises:
        ValueError: the file is missing, truncated, or lacks a named tensor.
    """
    with opened(path, advice=VERIFY) as stream:
        return [stream.get_tensor(name) for name in names]


def load_metadata(path: Path) -> dict[str, Any]:
    """Only the metadata: cheap for any size of file. ValueError as in `load`."""
    with opened(path, advice=VERIFY) as stream:
        return _metadata(stream, path)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file from outside; ValueError if it cannot be read."""
    with opened(path) as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.offset_keys()}
        return tensors, dict(stream.metadata() or {})


@contextlib.contextmanager
def opened(path: Path, *, advice: str = "") -> Iterator[Any]:
    """The open file; tensors are read one by one, so that a signal can stop it between two of them.

    Raises:
        ValueError: whatever is wrong, in one line with `advice` at its end.
    """
    with outside_files.reading(path, "safetensors", advice=advice):
        with path.open("rb") as start:
            if (size := int.from_bytes(start.read(8), "little")) > MAX_HEADER:
                raise ValueError(f"its header would have {size} bytes, more than {MAX_HEADER}: it is damaged")
        try:
            with safetensors.safe_open(path, framework="pt") as stream:
                yield stream
        except safetensors.SafetensorError as error:
            early = any(word in str(error) for word in ("InvalidHeaderLength", "IncompleteBuffer", "HeaderTooSmall"))
            raise ValueError(f"it ends early or is damaged ({error})" if early else str(error)) from error


def _metadata(stream: Any, path: Path) -> dict[str, Any]:
    text = (stream.metadata() or {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} has no '{KEY}' metadata: it was not written by a stage of this project")
    return files.json_object(text, path)
