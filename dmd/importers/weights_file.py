"""State dicts in files of torch.save: dense tensors by name.

torch.load is not used. It reads a zip file by another parser than any check before it could, and takes for ever over
some small pickles. Here both formats are read by `dmd.importers.inert_pickle`, and storages within the file's bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from dmd.importers.bounded_stream import BoundedStream
from dmd.importers.inert_pickle import Global, Makers, Stateful, check_key, load
from dmd.importers.pickled_tensors import TYPES, StorageId, StoredTensor, note_storage, read_old, read_values
from dmd.provenance import outside_files

ZIP, TAR = b"PK\3\4", b"ustar"  # the first bytes of a file; those from 257 on
DEPTH = 4  # of dicts around a network


class _Dict(dict[Any, Any], Stateful):
    """Stands for OrderedDict, whose attributes (the `_metadata` of a state dict) are passed over."""

    def set_state(self, state: Any) -> None:
        """Passes over the state."""


def _ordered(pairs: Any = ()) -> _Dict:
    return _Dict((check_key(key), value) for key, value in pairs)


def _sizes(values: Any = ()) -> Any:
    return values


def _no_device(*_: Any) -> None:
    return None


MAKERS: Makers = {
    **TYPES,
    Global("collections", "OrderedDict"): _ordered,
    Global("torch", "Size"): _sizes,
    Global("torch", "device"): _no_device,
    Global("torch.nn.parameter", "Parameter"): lambda tensor, *_: tensor,
    Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    Global("torch._utils", "_rebuild_tensor"): lambda *parts: StoredTensor(*parts[:4]),
    Global("torch._utils", "_rebuild_tensor_v2"): lambda *parts: StoredTensor(*parts[:4]),
}


def read(path: Path, *, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the network in a file. Tensors that share a storage in the file share it in memory.

    Args:
        name: of one tensor that the network has. Where the file has a dict around the network (`state_dict`), or a
            wrapper has put words before all names (`module.`, `_orig_mod.`), this name shows what to take off.

    Raises:
        ValueError: the file is damaged, or holds anything but finite tensors within their storage, or several
            networks; the message is one line.
    """
    with outside_files.reading(path, "a file of weights only"), path.open("rb") as stream:
        size = path.stat().st_size
        content, storages = _content(stream, size)
        state = _network(content, name, path)
        tensors = {key: value.view(storages[value.storage.key], key[:100]) for key, value in state.items()}
        if sum(value.nbytes for value in tensors.values()) > size:
            raise ValueError(f"{path} holds tensors of more bytes than the file has")
        if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
            raise ValueError(f"{path} holds weights that are not finite: {', '.join(bad[:3])[:200]}")
        return tensors


def _content(stream: BinaryIO, size: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """What was saved, with `StoredTensor` for tensors, and the storages by name."""
    head = stream.read(512)
    stream.seek(0)
    if head[:4] == ZIP:
        return _zipped(stream, size)
    if head[257:262] == TAR:
        raise ValueError("it is in the tar format of torch 0.1: load it with torch and save it again")
    return read_old(BoundedStream(stream, size), MAKERS)


def _zipped(stream: BinaryIO, size: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """The same of a zip file: a pickle `NAME/data.pkl`, and a member `NAME/data/KEY` for each storage."""
    with zipfile.ZipFile(stream) as archive:
        if (claimed := sum(part.file_size for part in archive.infolist())) > size:
            raise ValueError(f"its parts claim {claimed} bytes, more than the file has")
        names = set(archive.namelist())
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file that torch.save did not write: it has no data.pkl")
        folder = pickles[0].removesuffix("/data.pkl")
        if f"{folder}/constants.pkl" in names:
            raise ValueError("it is a TorchScript archive: save the state_dict() of its module instead")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("it is not little-endian")
        known: dict[str, StorageId] = {}
        content = BoundedStream(io.BytesIO(text := archive.read(pickles[0])), len(text))
        saved = load(content, MAKERS, persistent=lambda entry: note_storage(entry, known))
        storages = {}
        for key, found in known.items():
            part = archive.getinfo(f"{folder}/data/{key}")
            with archive.open(part) as values:
                storages[key] = read_values(BoundedStream(values, part.file_size), found)
        return saved, storages


class _Place(NamedTuple):
    """A dict in the file that holds the network: where it stands, and what stands before its names."""

    where: str
    prefix: str
    state: dict[Any, Any]


def _network(content: Any, name: str, path: Path) -> dict[str, StoredTensor]:
    """The stored tensors of the network by its own names."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no dict of names and tensors")
    places = list(_places(content, name, "", DEPTH, set())) or [_Place("", "", content)]
    if len(places) > 1:
        several = ", ".join(f"{place.where}{place.prefix}{name}" for place in places)
        raise ValueError(f"{path} holds several networks: save one of them alone: {several[:200]}")
    where, prefix, state = places[0]
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no dict of names and tensors")
    if other := [key for key in state if not key.startswith(prefix)]:
        raise ValueError(
            f"{path} has names that begin with {where}{prefix}, but others, too: {', '.join(other[:3])[:200]}"
        )
    if bad := [key for key, value in state.items() if not _is_tensor(value)]:
        raise ValueError(f"{path} holds something else than tensors: {', '.join(bad[:3])[:200]}")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _places(content: dict[Any, Any], name: str, where: str, depth: int, seen: set[int]) -> Iterator[_Place]:
    """Every dict within `content` that has a tensor `name`, with or without words before it."""
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(value, dict):
            if depth and id(value) not in seen:
                yield from _places(value, name, f"{where}{str(key)[:50]}.", depth - 1, seen)
        elif isinstance(key, str) and f".{key}".endswith(f".{name}") and _is_tensor(value):
            yield _Place(where, key.removesuffix(name), content)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor) and isinstance(value.storage, StorageId)
