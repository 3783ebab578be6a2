"""State dicts in files of torch.save: dense tensors by name. This is the only caller of torch.load."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch

DAMAGE = (  # errors of torch's reader and of zipfile for damaged or hostile files
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
    """The tensors of a file, by torch's restricted reader, which runs no code.

    Raises:
        ValueError: the file is damaged, or holds anything but tensors within their storage; the message is one line.
    """
    try:
        _check_member_sizes(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of weights only: {reason}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no dict of names and tensors")
    if bad := [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{path} holds something else than tensors: {', '.join(bad[:3])[:200]}")
    if bad := [key for key, value in state.items() if not _stored(value)]:
        raise ValueError(f"{path} holds tensors larger than their storage: {', '.join(bad[:3])[:200]}")
    if sum(value.nbytes for value in state.values()) > path.stat().st_size:
        raise ValueError(f"{path} holds tensors of more bytes than the file has")
    return dict(state)


def _check_member_sizes(path: Path) -> None:
    """ValueError if the members of a zip file claim more bytes than the file has; torch does not compress members."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            claimed = sum(part.file_size for part in parts.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"its parts claim {claimed} bytes, more than the file has")


def _stored(value: torch.Tensor) -> bool:
    """Whether a tensor is dense, in memory, not empty, and no larger than its storage."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return 0 < value.nbytes <= value.untyped_storage().nbytes()
