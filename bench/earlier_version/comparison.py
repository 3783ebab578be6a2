"""The content of artifacts, and differences between two of them."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors
import torch

from bench.earlier_version.renames import RENAMES, Rename, match

TOLERANCE = 1e-6  # allowed relative difference: max |a - b| / max |a|
UNCOMPARED_FACTS = frozenset({"stage", "version", "spec", "inputs", "key"})  # provenance of an artifact
UNCOMPARED_COLUMNS = frozenset(
    {"offset", "length", "size", "sha256"}
)  # of tars, which hold the spec beside the tensors

Values = dict[str, np.ndarray]
Content = dict[str, Values]  # "tensors", "columns", "values" or "facts" -> name -> value


@dataclass(frozen=True)
class Difference:
    """How far two values of one name are apart.

    Attributes:
        bits: whether they are equal bit by bit.
        absolute, relative: max |a - b|, and that over max |a|; both infinite for values that cannot be subtracted.
        why: why they cannot be subtracted.
    """

    bits: bool
    absolute: float = 0.0
    relative: float = 0.0
    why: str = ""


@dataclass
class Comparison:
    """One kind of content of one artifact, in both versions.

    Attributes:
        worst: name with the largest relative difference, and why its values cannot be subtracted, if so.
        declared: names that only one side has, as a row of RENAMES says.
    """

    artifact: str
    kind: str
    num: int = 0
    num_equal: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    worst: str = ""
    only_old: list[str] = field(default_factory=list)
    only_new: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether no name is missing and no value differs by more than `TOLERANCE`."""
        return not self.only_old and not self.only_new and self.relative <= TOLERANCE

    def add(self, name: str, difference: Difference) -> None:
        """Counts one pair of values."""
        self.num += 1
        self.num_equal += difference.bits
        self.absolute = max(self.absolute, difference.absolute)
        if difference.relative > self.relative:
            self.relative = difference.relative
            self.worst = f"{name}: {difference.why}" if difference.why else name


def compare(artifact: str, old: Path, new: Path, renames: Sequence[Rename] = RENAMES) -> Iterator[Comparison]:
    """Compares an artifact (its path below results/) of the earlier version with that of this tree."""
    before, after = read(old), read(new)
    for kind in dict.fromkeys([*before, *after]):
        ours, theirs = after.get(kind, {}), before.get(kind, {})
        names = match(artifact, theirs, ours, renames)
        empty = [name for name in names.only_old if _is_logged(kind, name) and _is_empty(theirs[name])]
        lacking = [name for name in names.only_old if name not in empty]
        comparison = Comparison(artifact, kind, only_old=lacking, only_new=names.only_new, declared=names.declared)
        for name, other in names.pairs:
            comparison.add(name, difference(theirs[name], ours[other]))
        yield comparison


def difference(old: np.ndarray, new: np.ndarray) -> Difference:
    """The difference of two arrays; values that are not finite must be equal at the same positions."""
    if old.dtype.kind in "OU" and new.dtype.kind in "OU":
        same = old.shape == new.shape and bool(np.all(old == new))
        return Difference(bits=True) if same else _incomparable("other text")
    if old.dtype != new.dtype or old.shape != new.shape:
        return _incomparable(f"{old.dtype} {old.shape} became {new.dtype} {new.shape}")
    if old.tobytes() == new.tobytes():
        return Difference(bits=True)
    before, after = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True) or not np.isfinite(after[finite]).all():
        return _incomparable("infinite or not a number in one tree only")
    absolute = float(np.abs(before - after, where=finite, out=np.zeros_like(before)).max())
    largest = float(np.abs(before[finite]).max(initial=0.0))
    relative = absolute / largest if largest else math.inf * absolute if absolute else 0.0
    return Difference(bits=False, absolute=absolute, relative=relative)


def _is_logged(kind: str, name: str) -> bool:
    """Whether a name is a column of a log, or of the log rows in a checkpoint."""
    return kind == "columns" or name.startswith("log.")


def _is_empty(column: np.ndarray) -> bool:
    """Whether a column of the log has no value in any row; this tree leaves such columns out."""
    return column.dtype.kind == "f" and bool(np.isnan(column).all())


def _incomparable(why: str) -> Difference:
    return Difference(bits=False, absolute=math.inf, relative=math.inf, why=why)


def read(path: Path) -> Content:
    """The compared content of a file, by kind and name; ValueError for another kind of file."""
    readers = {".safetensors": _safetensors, ".parquet": _parquet, ".tar": _tar, ".json": _json}
    if path.suffix not in readers:
        raise ValueError(f"{path}: only {', '.join(readers)} can be compared")
    return readers[path.suffix](path)


def _safetensors(path: Path) -> Content:
    with safetensors.safe_open(path, framework="pt") as stream:
        tensors = {name: _array(stream.get_tensor(name)) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        metadata = stream.metadata() or {}
    return {"tensors": tensors, "facts": _facts(metadata.get("dmd", "{}"))}


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as a NumPy array, which has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _parquet(path: Path) -> Content:
    table = pq.read_table(path)
    metadata = {**(table.schema.metadata or {}), **(pq.read_metadata(path).metadata or {})}
    names = [name for name in table.column_names if name not in UNCOMPARED_COLUMNS]
    columns = {name: np.asarray(table[name].to_numpy()) for name in names}
    return {"columns": columns, "facts": _facts(metadata.get(b"dmd", b"{}"))}


def _tar(path: Path) -> Content:
    tensors: Values = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is not None and member.name.endswith(".npy"):
                tensors[member.name] = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    return {"tensors": tensors}


def _json(path: Path) -> Content:
    return {"values": _facts(path.read_text())}


def _facts(text: str | bytes) -> Values:
    """Values of a JSON text by their path, such as `network.channels`, without `UNCOMPARED_FACTS`."""
    return {path: np.asarray(value) for path, value in _leaves(json.loads(text), "")}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Numbers as float64, so that 1 and 1.0 are equal; all else as text."""
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            if key not in UNCOMPARED_FACTS:
                yield from _leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)
    else:
        yield path, json.dumps(value)
