"""Reads the pickles of the released EDM teachers as inert data: modules, their arguments and weights.

Such a file holds `{"ema": module, ...}`. Each module is a call of torch_utils.persistence._reconstruct_persistent_obj
on a dict with the name of its class, the source code of the class, and its state. NVIDIA's reader executes the source
code; this one only takes its digest. `dmd.importers.pickled_tensors` reads the tensors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dmd.importers.bounded_stream import BoundedStream
from dmd.importers.inert_pickle import Global, Stateful, load
from dmd.importers.pickled_tensors import Storage, StoredTensor
from dmd.provenance import outside_files

MAX_SIZE = 4 << 30  # bytes of a file; the largest released one has 1.2e9
MAX_DEPTH = 16  # of nested modules; the released files have 5
MAX_ENTRIES = 50_000  # in the dicts of all modules, a shared dict once per use; the released files have about 2,000
MAX_NAME = 100  # characters
SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}


@dataclass(frozen=True)
class Module:
    """A module of the file.

    Attributes:
        class_name: name of its class in the file; "ModuleDict" for containers.
        arguments: keyword arguments of its class; their values are not checked.
        attributes: its other public attributes, with which the class computes; their values are not checked.
        positional: number of positional arguments.
        tensors: its own parameters and buffers, by name.
        modules: its child modules, by name.
        source_sha256: digest of the source code of its class in the file.
    """

    class_name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    positional: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    source_sha256: str = ""

    def state(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Dotted names and tensors of this module and all its children."""
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor
        for name, module in self.modules.items():
            yield from module.state(f"{prefix}{name}.")


def read(path: Path, *, key: str = "ema", max_size: int = MAX_SIZE) -> Module:
    """The module of a released file under `key`; nothing in the file is executed.

    Raises:
        ValueError: the file is larger than `max_size` bytes, damaged, or holds anything else; the message is one line.
    """
    size = path.stat().st_size
    if size > max_size:
        raise ValueError(f"{path} has {size} bytes, more than the allowed {max_size}")
    with outside_files.reading(path, "an EDM teacher"), path.open("rb") as stream:
        content = load(BoundedStream(stream, size), _makers(size))
        if not isinstance(content, dict) or not isinstance(content.get(key), _Persistent):
            raise ValueError(f"it is no dict with a module {key!r}")
        return _ModuleReader(size).module(content[key], 0)


@dataclass(frozen=True, eq=False)
class _Persistent:
    class_name: str
    state: dict[Any, Any]
    source: str


class _Container(Stateful):
    """Stands for torch's ModuleDict, whose state is set by BUILD."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise ValueError("a ModuleDict whose state is no dict")
        self.state = state


class _ScalarType(Stateful):
    """Stands for numpy's dtype of a scalar, whose byte order is set by BUILD."""

    def __init__(self, name: str, *_: Any) -> None:
        self.format = SCALARS.get(name) if isinstance(name, str) else None

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise ValueError("a number that is not little-endian")


def _makers(size: int) -> dict[Global, Any]:
    """By global: the function that is called in its place; `_codecs.encode` is limited to 2 * `size` characters."""
    left = [2 * size]

    def encode(text: str, encoding: str) -> bytes:
        left[0] -= len(text)
        if left[0] < 0 or encoding != "latin1":
            raise ValueError("_codecs.encode: more text than the file holds, or not latin1")
        return text.encode("latin1")

    makers = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: StoredTensor(*parts[:4]),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch.storage", "_load_from_bytes"): Storage,
        ("torch.nn.modules.container", "ModuleDict"): _Container,
        ("collections", "OrderedDict"): lambda: {},
        ("dnnlib.util", "EasyDict"): lambda: {},
        ("numpy", "dtype"): _ScalarType,
        ("_codecs", "encode"): encode,
    }
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray", "scalar"] = _scalar
    for builtins in ("builtins", "__builtin__"):
        makers[builtins, "set"] = lambda items=None: items
    return {Global(*names): maker for names, maker in makers.items()}


def _scalar(kind: Any, data: Any) -> int | float | bool:
    if not isinstance(kind, _ScalarType) or kind.format is None or not isinstance(data, bytes):
        raise ValueError("a numpy scalar of an unknown type")
    if len(data) != struct.calcsize(f"<{kind.format}"):
        raise ValueError(f"a numpy scalar of {len(data)} bytes")
    return struct.unpack(f"<{kind.format}", data)[0]


def _persistent(meta: Any) -> _Persistent:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise ValueError("a persistent object that is no class")
    name, state, source = meta.get("class_name"), meta.get("state"), meta.get("module_src", "")
    if not isinstance(name, str) or not isinstance(state, dict) or not isinstance(source, str):
        raise ValueError("a persistent object without class_name or state")
    return _Persistent(name[:200], state, source)


class _ModuleReader:
    """Turns the objects of `_makers` into modules, with limits on what they may hold."""

    def __init__(self, size: int) -> None:
        self._left = size  # bytes of storages still allowed: together they cannot exceed the file
        self._entries = MAX_ENTRIES
        self._seen: set[int] = set()
        self._digests: dict[int, str] = {}  # by id of the source code, which modules share

    def module(self, item: Any, depth: int) -> Module:
        """A module with all its children."""
        if not isinstance(item, _Persistent | _Container):
            raise ValueError(f"a module was expected, found a {type(item).__name__}")
        if depth > MAX_DEPTH or id(item) in self._seen:
            raise ValueError("modules are nested too deep, or one occurs twice")
        self._seen.add(id(item))
        own = {**self._named(item.state, "_parameters"), **self._named(item.state, "_buffers")}
        tensors = {name: self.tensor(value, name) for name, value in own.items()}
        modules = {name: self.module(value, depth + 1) for name, value in self._named(item.state, "_modules").items()}
        if isinstance(item, _Container):
            return Module("ModuleDict", tensors=tensors, modules=modules)
        if not isinstance(positional := item.state.get("_init_args", ()), tuple | list):
            raise ValueError(f"{item.class_name}: its arguments by position are no tuple")
        arguments = self._named(item.state, "_init_kwargs", keep_none=True)
        state = {key: value for key, value in self._named({"state": item.state}, "state").items() if key[:1] != "_"}
        attributes = {key: value for key, value in state.items() if key != "training"}
        digest = self._digest(item.source)
        return Module(item.class_name, arguments, attributes, len(positional), tensors, modules, digest)

    def tensor(self, item: Any, name: str) -> torch.Tensor:
        """A tensor with its own memory."""
        if not isinstance(item, StoredTensor):
            raise ValueError(f"{name}: a tensor was expected")
        self._left -= item.num_bytes  # before the storage is parsed, and again for each tensor that shares it
        if self._left < 0:
            raise ValueError("more numbers in tensors than the file holds")
        return item.view(item.stored(name), name).clone(memory_format=torch.contiguous_format)

    def _digest(self, source: str) -> str:
        if id(source) not in self._digests:
            self._digests[id(source)] = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        return self._digests[id(source)]

    def _named(self, state: dict[Any, Any], key: str, *, keep_none: bool = False) -> dict[str, Any]:
        """The entries of a dict in a module's state, by default without None, torch's value for an absent bias."""
        entries = state.get(key, {})
        if not isinstance(entries, dict) or not all(isinstance(n, str) and len(n) <= MAX_NAME for n in entries):
            raise ValueError(f"{key} is no dict of names of at most {MAX_NAME} characters")
        self._entries -= len(entries)
        if self._entries < 0:
            raise ValueError(f"more than {MAX_ENTRIES} names of tensors, modules and arguments")
        return {name: value for name, value in entries.items() if keep_none or value is not None}
