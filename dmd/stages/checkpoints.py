"""Checkpoints of a distillation: everything an update changes, under a key that says which run it belongs to."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from dmd.artifacts import files, record
from dmd.artifacts import tensors as tensor_files
from dmd.methods import state
from dmd.methods.dmd import Distillation
from dmd.stages import stage

KEPT = 2  # newest checkpoints left on disk


def checkpoint_key(provenance: dict[str, Any]) -> str:
    """Digest of spec, stage version and input digests."""
    return hashlib.sha256(files.canonical_json(provenance).encode()).hexdigest()


def save(folder: Path, *, key: str, update: int, learnt: dict[str, torch.Tensor], rows: list[dict[str, float]]) -> None:
    """Writes a checkpoint taken before update number `update`, and removes all but the newest two.

    Args:
        learnt: what `dmd.methods.state.state` returns of the distillation.
    """
    kept = {f"state.{name}": value for name, value in learnt.items()}
    names = sorted({name for row in rows for name in row})
    for name in names:
        column = [row.get(name, float("nan")) for row in rows]
        kept[f"log.{name}"] = torch.tensor(column, dtype=torch.float64)
    path = folder / f"{update:08d}.safetensors"
    with record.publish(path, stage="distill", inputs={}) as temporary:
        tensor_files.write(temporary, kept, {"key": key, "update": update})
    found = sorted(folder.glob("[0-9]*.safetensors"))
    place = found.index(path)
    for old in set(found) - set(found[max(place + 1 - KEPT, 0) : place + 1]):  # later ones are of another run
        old.unlink()
        record.sidecar(old).unlink(missing_ok=True)


def resume(folder: Path, *, key: str, distillation: Distillation) -> tuple[int, list[dict[str, float]]]:
    """Restores the newest whole checkpoint of this key; others are ignored with a log line.

    Returns:
        The next update and the log rows so far: (0, []) where there is none.
    """
    for path in sorted(folder.glob("[0-9]*.safetensors"), reverse=True):
        try:
            record.check(path)
            tensors, metadata = tensor_files.load(path)
        except ValueError as error:
            stage.log(f"ignoring checkpoint {path.name}: {error}")
            continue
        if metadata.get("key") != key:
            stage.log(f"ignoring checkpoint {path}: it belongs to another spec, version or input")
            continue
        state.restore(distillation, {name[6:]: value for name, value in tensors.items() if name.startswith("state.")})
        columns = {name[4:]: value.tolist() for name, value in tensors.items() if name.startswith("log.")}
        num = len(next(iter(columns.values()), []))
        rows = [{name: column[row] for name, column in columns.items()} for row in range(num)]
        stage.log(f"continuing at update {metadata['update']} from {path}")
        return metadata["update"], rows
    return 0, []


def clear(folder: Path) -> None:
    """Removes all checkpoints: called once the artifact is durable."""
    for pattern in ("[0-9]*.safetensors", ".[0-9]*.json", ".tmp*"):
        for path in folder.glob(pattern):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def kept(folder: Path) -> str:
    """Which checkpoint there is to go on from, for a message."""
    good = sorted(folder.glob("[0-9]*.safetensors"))
    return f"last good checkpoint {good[-1]}" if good else "no checkpoint was written yet"


def check_finite(row: dict[str, float], update: int, folder: Path) -> None:
    """ValueError if a value of a log row is not finite; empty bins of noise levels may be."""
    bad = [name for name, value in row.items() if not math.isfinite(value) and not name.startswith("gap_bin")]
    if not bad:
        return
    what = f"{', '.join(bad)} not finite at update {update}; {kept(folder)}"
    raise ValueError(f"{what}: lower distill.optimiser.learning_rate")
