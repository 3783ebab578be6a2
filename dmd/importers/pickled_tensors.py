"""Tensors in torch's pickles: each refers to a storage, which is saved as the bytes of a nested torch.save.

These bytes are a second pickle, in torch's older format without zip. torch.storage._load_from_bytes would load it
without restriction; here `dmd.importers.inert_pickle` reads it, and allocates no more memory than it has bytes.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch

from dmd.importers.bounded_stream import BoundedStream
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
    """The unchecked argument of a call of torch.storage._load_from_bytes."""

    blob: Any


@dataclass(frozen=True)
class StoredTensor:
    """The unchecked arguments of a call of torch._utils._rebuild_tensor_v2."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage in the file, with its header."""
        blob = self.storage.blob if isinstance(self.storage, Storage) else b""
        return len(blob) if isinstance(blob, bytes) else 0

    def stored(self, name: str) -> torch.Tensor:
        """The values of the storage, one-dimensional; ValueError if it is damaged or not a storage."""
        if not isinstance(self.storage, Storage):
            raise ValueError(f"{name}: a tensor was expected")
        return _values(self.storage.blob)

    def view(self, stored: torch.Tensor, name: str) -> torch.Tensor:
        """The tensor, with its own memory; ValueError if it is empty or reaches beyond the storage."""
        sizes, strides = _extents(self.size, name), _extents(self.stride, name)
        (offset,) = _extents((self.offset,), name)
        if len(sizes) != len(strides):
            raise ValueError(f"{name}: {len(sizes)} sizes and {len(strides)} strides")
        num = math.prod(sizes)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if not num:
            raise ValueError(f"{name}: the tensor is empty")
        if num > len(stored) or last >= len(stored):
            raise ValueError(f"{name}: sizes, strides or offset reach beyond its {len(stored)} stored values")
        return torch.as_strided(stored, sizes, strides, offset).clone(memory_format=torch.contiguous_format)


def _extents(values: Any, name: str) -> list[int]:
    if not isinstance(values, tuple | list) or len(values) > 8:
        raise ValueError(f"{name}: sizes or strides are not a tuple of at most 8")
    if not all(type(value) is int and 0 <= value < 1 << 40 for value in values):
        raise ValueError(f"{name}: sizes, strides or offset are negative or not integers")
    return list(values)


def _values(blob: Any) -> torch.Tensor:
    """The values of a storage, one-dimensional; its format is five small pickles, a count, the raw values."""
    if not isinstance(blob, bytes):
        raise ValueError("a storage does not consist of bytes")
    stream = BoundedStream(io.BytesIO(blob), len(blob))
    types = {Global("torch", name): name for name in STORAGES}
    try:
        header = [load(stream, {}) for _ in range(3)]
        if header[:2] != [MAGIC, FORMAT] or not isinstance(header[2], dict) or not header[2].get("little_endian"):
            raise ValueError("it is not in torch's format, or not little-endian")
        entry = load(stream, types, persistent=lambda entry: entry)  # type: ignore[arg-type]
        keys = load(stream, {})
        (num,) = struct.unpack("<q", stream.read(8))
    except ValueError as error:
        raise ValueError(f"in a nested storage: {error}") from error
    valid = type(entry) is tuple and len(entry) == 6 and entry[0] == "storage" and type(entry[1]) is Global
    if not valid or type(entry[2]) is not str or keys != [entry[2]] or entry[4] != num or entry[5] is not None:
        raise ValueError("in a nested storage: it does not hold exactly one storage")
    dtype = STORAGES[entry[1].name]
    if num < 0 or stream.left != num * dtype.itemsize:
        raise ValueError(f"in a nested storage: {num} values do not fit {stream.left} bytes")
    if not num:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(stream.read(stream.left)), dtype=dtype)
