"""State dicts in files of torch.save: dense tensors by name, and nothing else. Nowhere else is torch.load called."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch

DAMAGE = (  # what torch's reader and zipfile raise for damaged files, and for those that want to run something
    pickle.UnpicklingError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    OSError,
    ImportError,
    zipfile.BadZipFile,
    struct.error,
)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; torch's restricted reader runs nothing that it names.

    Raises:
        ValueError: the file is damaged, holds something else, or tensors of more numbers than it stores; one line.
    """
    try:
        _check_claims(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of weights alone: {reason}") from error
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path} holds no dict of names and tensors")
    if bad := [key for key, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{path} holds something else than tensors: {', '.join(bad[:3])[:200]}")
    if bad := [key for key, value in found.items() if not _stored(value)]:
        raise ValueError(f"{path} holds tensors whose numbers are not all stored: {', '.join(bad[:3])[:200]}")
    if sum(value.nbytes for value in found.values()) > path.stat().st_size:
        raise ValueError(f"{path} holds tensors of more bytes than the file has")
    return dict(found)


def _check_claims(path: Path) -> None:
    """ValueError if the parts of a zip file claim more bytes than it has: torch stores them as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            claimed = sum(part.file_size for part in parts.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"its parts claim {claimed} bytes, more than the file has")


def _stored(value: torch.Tensor) -> bool:
    """Whether a tensor is dense, in memory, and claims some numbers, no more than it stores."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return 0 < value.nbytes <= value.untyped_storage().nbytes()
