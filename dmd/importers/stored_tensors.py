"""Tensors inside pickles of tensors: each names a storage, the bytes of a torch.save of its own.

That is a second pickle, in torch's format before its zip files, which the real torch.storage._load_from_bytes would
load without restriction. Here it goes through `dmd.importers.inert_pickle`, too, and claims no memory that it does not
fill.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch

from dmd.importers.bounded import Bounded
from dmd.importers.inert_pickle import Global, load

MAGIC, FORMAT = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


@dataclass(frozen=True)
class Storage:
    """What stands for torch.storage._load_from_bytes: its argument."""

    blob: Any


@dataclass(frozen=True)
class StoredTensor:
    """What stands for torch._utils._rebuild_tensor_v2: arguments of any type, not yet checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    @property
    def num_bytes(self) -> int:
        """How long the storage stands in the file, all around its numbers included."""
        blob = self.storage.blob if isinstance(self.storage, Storage) else b""
        return len(blob) if isinstance(blob, bytes) else 0

    def stored(self, name: str) -> torch.Tensor:
        """All numbers of the storage, one-dimensional; ValueError if it is none, or claims more than it holds."""
        if not isinstance(self.storage, Storage):
            raise ValueError(f"{name}: a tensor was expected")
        return _numbers(self.storage.blob)

    def view(self, stored: torch.Tensor, name: str) -> torch.Tensor:
        """The tensor itself, in memory of its own; ValueError if it is empty or reaches beyond what is stored."""
        sizes, strides = _extents(self.size, name), _extents(self.stride, name)
        (offset,) = _extents((self.offset,), name)
        if len(sizes) != len(strides):
            raise ValueError(f"{name}: {len(sizes)} sizes and {len(strides)} strides")
        num = math.prod(sizes)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if not num:
            raise ValueError(f"{name}: no numbers, which no weight of such a network has")
        if num > len(stored) or last >= len(stored):
            raise ValueError(f"{name}: sizes, strides or offset reach beyond its {len(stored)} stored numbers")
        return torch.as_strided(stored, sizes, strides, offset).clone(memory_format=torch.contiguous_format)


def _extents(values: Any, name: str) -> list[int]:
    if not isinstance(values, tuple | list) or len(values) > 8:
        raise ValueError(f"{name}: sizes or strides are no short tuple")
    if not all(type(value) is int and 0 <= value < 1 << 40 for value in values):
        raise ValueError(f"{name}: sizes, strides or offset are negative or no integers")
    return list(values)


def _numbers(blob: Any) -> torch.Tensor:
    """The numbers of a storage, one-dimensional: five small pickles, a count, the raw numbers."""
    if not isinstance(blob, bytes):
        raise ValueError("a storage that is not made of bytes")
    stream = Bounded(io.BytesIO(blob), len(blob))
    types = {Global("torch", name): name for name in STORAGES}
    try:
        header = [load(stream, {}) for _ in range(3)]
        if header[:2] != [MAGIC, FORMAT] or not isinstance(header[2], dict) or not header[2].get("little_endian"):
            raise ValueError("it is not in torch's format, or not little-endian")
        found = load(stream, types, persistent=lambda found: found)  # type: ignore[arg-type]
        keys = load(stream, {})
        (num,) = struct.unpack("<q", stream.read(8))
    except ValueError as error:
        raise ValueError(f"in a nested storage: {error}") from error
    known = type(found) is tuple and len(found) == 6 and found[0] == "storage" and type(found[1]) is Global
    if not known or type(found[2]) is not str or keys != [found[2]] or found[4] != num or found[5] is not None:
        raise ValueError("in a nested storage: it is no single storage")
    dtype = STORAGES[found[1].name]
    if num < 0 or stream.left != num * dtype.itemsize:
        raise ValueError(f"in a nested storage: {num} numbers are claimed in {stream.left} bytes")
    if not num:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(stream.read(stream.left)), dtype=dtype)
