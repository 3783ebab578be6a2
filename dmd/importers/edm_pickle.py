"""The pickles of the released EDM teachers as inert data: modules, their arguments and their weights.

Such a file holds `{"ema": module, ...}`. Each module is a call of torch_utils.persistence._reconstruct_persistent_obj
on a dict with the name of its class, the source code of that class (which NVIDIA's reader executes; here it becomes a
digest), and its state; `dmd.importers.stored_tensors` has the tensors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dmd.importers.bounded import Bounded
from dmd.importers.inert_pickle import Global, Stateful, load
from dmd.importers.stored_tensors import Storage, StoredTensor

MAX_SIZE = 4 << 30  # bytes of a file; the largest released one has 1.2e9
MAX_DEPTH = 16  # of modules within modules; the released ones have 5
MAX_ENTRIES = 50_000  # of the dicts of all modules, modules that share a dict counting it again; they have some 2,000
MAX_NAME = 100  # characters
SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}


@dataclass(frozen=True)
class Module:
    """A module of the file.

    Attributes:
        class_name: as the file says; "ModuleDict" for containers.
        arguments: keyword arguments its class was called with; values are whatever the file holds.
        positional: how many arguments were given by position.
        tensors: parameters and buffers of its own, by name.
        modules: by name.
        source_sha256: digest of the source code that the file carries for its class.
    """

    class_name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    positional: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    source_sha256: str = ""

    def state(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Dotted names and tensors of this module and all below."""
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor
        for name, module in self.modules.items():
            yield from module.state(f"{prefix}{name}.")


def read(path: Path, *, key: str = "ema", max_size: int = MAX_SIZE) -> Module:
    """The module of a released file under `key`; nothing in the file is executed.

    Raises:
        ValueError: the file is larger than `max_size` bytes, damaged, or holds anything else; one line.
    """
    size = path.stat().st_size
    if size > max_size:
        raise ValueError(f"{path} has {size} bytes, more than the {max_size} that such a file may have")
    try:
        with path.open("rb") as stream:
            whole = load(Bounded(stream, size), _makers(size))
        if not isinstance(whole, dict) or not isinstance(whole.get(key), _Persistent):
            raise ValueError(f"it is no dict with a module {key!r}")
        return _Reading(size).module(whole[key], 0)
    except ValueError as error:
        raise ValueError(f"{path} is no EDM teacher that can be used: {error}") from error


@dataclass(frozen=True, eq=False)
class _Persistent:
    class_name: str
    state: dict[Any, Any]
    source: str


class _Container(Stateful):
    """torch's ModuleDict, whose state comes by BUILD."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise ValueError("a ModuleDict whose state is no dict")
        self.state = state


class _ArrayType(Stateful):
    """numpy's dtype of a scalar, whose byte order comes by BUILD."""

    def __init__(self, name: str, *_: Any) -> None:
        self.format = SCALARS.get(name) if isinstance(name, str) else None

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise ValueError("a number that is not little-endian")


def _makers(size: int) -> dict[Global, Any]:
    """What stands for each global of such a file of `size` bytes; encoding shared text again and again is bounded."""
    left = [2 * size]

    def encode(text: str, encoding: str) -> bytes:
        left[0] -= len(text)
        if left[0] < 0 or encoding != "latin1":
            raise ValueError("_codecs.encode: more text than the file holds, or not latin1")
        return text.encode("latin1")

    found = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: StoredTensor(*parts[:4]),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch.storage", "_load_from_bytes"): Storage,
        ("torch.nn.modules.container", "ModuleDict"): _Container,
        ("collections", "OrderedDict"): lambda: {},
        ("dnnlib.util", "EasyDict"): lambda: {},
        ("numpy", "dtype"): _ArrayType,
        ("_codecs", "encode"): encode,
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "scalar"] = _scalar
    for builtins in ("builtins", "__builtin__"):
        found[builtins, "set"] = lambda items=None: items
    return {Global(*names): maker for names, maker in found.items()}


def _scalar(kind: Any, data: Any) -> int | float | bool:
    if not isinstance(kind, _ArrayType) or kind.format is None or not isinstance(data, bytes):
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


class _Reading:
    """Turns stand-ins into modules, never reading more than the file holds."""

    def __init__(self, size: int) -> None:
        self._left = size  # bytes of storages: each stands in the file once
        self._entries = MAX_ENTRIES
        self._seen: set[int] = set()
        self._digests: dict[int, str] = {}  # of source codes, which modules share

    def module(self, found: Any, depth: int) -> Module:
        """A module and all below."""
        if not isinstance(found, _Persistent | _Container):
            raise ValueError(f"a module was expected, found a {type(found).__name__}")
        if depth > MAX_DEPTH or id(found) in self._seen:
            raise ValueError("modules within modules without end, or one at two places")
        self._seen.add(id(found))
        own = {**self._named(found.state, "_parameters"), **self._named(found.state, "_buffers")}
        tensors = {name: self.tensor(value, name) for name, value in own.items()}
        modules = {name: self.module(value, depth + 1) for name, value in self._named(found.state, "_modules").items()}
        if isinstance(found, _Container):
            return Module("ModuleDict", tensors=tensors, modules=modules)
        if not isinstance(positional := found.state.get("_init_args", ()), tuple | list):
            raise ValueError(f"{found.class_name}: its arguments by position are no tuple")
        arguments = self._named(found.state, "_init_kwargs", keep_none=True)
        return Module(found.class_name, arguments, len(positional), tensors, modules, self._digest(found.source))

    def tensor(self, found: Any, name: str) -> torch.Tensor:
        """A tensor of its own memory."""
        if not isinstance(found, StoredTensor):
            raise ValueError(f"{name}: a tensor was expected")
        self._left -= found.num_bytes  # before they are parsed, and again for each tensor that shares them
        if self._left < 0:
            raise ValueError("more numbers in tensors than the file holds")
        return found.view(found.stored(name), name)

    def _digest(self, source: str) -> str:
        if id(source) not in self._digests:
            self._digests[id(source)] = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        return self._digests[id(source)]

    def _named(self, state: dict[Any, Any], key: str, *, keep_none: bool = False) -> dict[str, Any]:
        """The entries of a module's dict, by default those that are there: torch keeps None for an absent bias."""
        found = state.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in found):
            raise ValueError(f"{key} is no dict of names of at most {MAX_NAME} characters")
        self._entries -= len(found)
        if self._entries < 0:
            raise ValueError(f"more than {MAX_ENTRIES} names of tensors, modules and arguments")
        return {name: value for name, value in found.items() if keep_none or value is not None}
