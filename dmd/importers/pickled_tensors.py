"""Tensors in torch's pickles: each refers to a storage, whose bytes stand after the pickle or in another file.

`read_old` reads torch's older format, without zip: that of files of weights until 2020, and of each storage in the
pickles of EDM teachers, which torch.storage._load_from_bytes would load without restriction. Here
`dmd.importers.inert_pickle` reads it, and allocates no more memory than it has bytes.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dmd.importers.bounded_stream import BoundedStream
from dmd.importers.inert_pickle import Global, Makers, load

MAGIC, FORMAT = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TYPES: Makers = {Global("torch", name): lambda: None for name in STORAGES}  # only named, never called


class StorageId(NamedTuple):
    """What a pickle says of a storage: its name in the file, the type and number of its values."""

    key: str
    dtype: torch.dtype
    num: int


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
        """The tensor, a view of the storage; ValueError if it is empty or reaches beyond the storage."""
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
        return torch.as_strided(stored, sizes, strides, offset)


def _extents(values: Any, name: str) -> list[int]:
    if not isinstance(values, tuple | list) or len(values) > 8:
        raise ValueError(f"{name}: sizes or strides are not a tuple of at most 8")
    if not all(type(value) is int and 0 <= value < 1 << 40 for value in values):
        raise ValueError(f"{name}: sizes, strides or offset are negative or not integers")
    return list(values)


def note_storage(entry: Any, known: dict[str, StorageId]) -> StorageId:
    """The storage that a persistent id of torch names, which is added to `known`.

    Raises:
        ValueError: another id, a storage that is a part of another one, or one that was named otherwise before.
    """
    valid = type(entry) is tuple and len(entry) in (5, 6) and type(entry[0]) is str and entry[0] == "storage"
    valid = valid and type(entry[1]) is Global and entry[1] in TYPES
    if not valid or type(entry[2]) is not str or type(entry[4]) is not int:
        raise ValueError("a persistent id that names no storage")
    if len(entry) == 6 and entry[5] is not None:
        raise ValueError("a storage that is a part of another one: save the file again with a later version of torch")
    found = StorageId(entry[2], STORAGES[entry[1].name], entry[4])
    if known.setdefault(found.key, found) != found:
        raise ValueError("a storage of two types or sizes")
    return found


def read_old(stream: BoundedStream, makers: Makers) -> tuple[Any, dict[str, torch.Tensor]]:
    """The object of a file in torch's older format, and its storages by name, one-dimensional.

    The format is five small pickles (the fourth holds the object, the fifth the names of storages), and then for each
    storage a count and the raw values.

    Raises:
        ValueError: the file is damaged, or holds anything that `makers` lack.
    """
    if load(stream, {}) != MAGIC or load(stream, {}) != FORMAT:
        raise ValueError("it is not in torch's format")
    if not isinstance(system := load(stream, {}), dict) or not system.get("little_endian"):
        raise ValueError("it is not little-endian")
    known: dict[str, StorageId] = {}
    content = load(stream, {**TYPES, **makers}, persistent=lambda entry: note_storage(entry, known))
    keys = load(stream, {})
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(known):
        raise ValueError("it does not hold exactly the storages that it names")
    storages: dict[str, torch.Tensor] = {}
    for key in keys:
        (num,) = struct.unpack("<q", stream.read(8))
        if num != known[key].num:
            raise ValueError(f"{num} values where {known[key].num} were named")
        storages[key] = read_values(stream, known[key])
    return content, storages


def read_values(stream: BoundedStream, found: StorageId) -> torch.Tensor:
    """The next values of a stream, one-dimensional; ValueError if it holds fewer."""
    content = stream.read_buffer(found.num * found.dtype.itemsize)
    return torch.frombuffer(content, dtype=found.dtype) if content else torch.empty(0, dtype=found.dtype)


def _values(blob: Any) -> torch.Tensor:
    """The values of a storage in the bytes of a nested torch.save, one-dimensional."""
    if not isinstance(blob, bytes):
        raise ValueError("a storage does not consist of bytes")
    stream = BoundedStream(io.BytesIO(blob), len(blob))
    try:
        content, storages = read_old(stream, {})
        if not isinstance(content, StorageId) or stream.left:
            raise ValueError("it does not hold exactly one storage")
    except ValueError as error:
        raise ValueError(f"in a nested storage: {error}") from error
    return storages[content.key]
