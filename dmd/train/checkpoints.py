"""Checkpoints of a training: everything that an update changes, and a key that identifies the run."""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dmd.provenance import files, record, tensor_files
from dmd.train import sharding, state
from dmd.train.monitor import Monitor
from dmd.train.trainer import Trainer

NUM_FILES = 2  # newest checkpoints left on disk


def checkpoint_key(provenance: Mapping[str, object], *, method_version: int) -> str:
    """Digest of spec, version of the stage, digests of inputs and, above 1, version of the method."""
    method = {"method_version": method_version} if method_version > 1 else {}
    return hashlib.sha256(files.canonical_json({**provenance, **method}).encode()).hexdigest()


def save(
    folder: Path,
    *,
    key: str,
    stage: str,
    update: int,
    tensors: dict[str, torch.Tensor],
    rows: list[dict[str, float]],
    monitor: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the checkpoint after `update` updates; of the other checkpoints only the one before it stays.

    Args:
        stage: name of the stage that trains.
        tensors: what `dmd.train.state.state` returns.
        monitor: what `Monitor.state` returns, if there is a monitor.
    """
    content = {f"state.{name}": value for name, value in tensors.items()}
    content |= {f"monitor.{name}": value for name, value in (monitor or {}).items()}
    names = sorted({name for row in rows for name in row})
    for name in names:
        column = [row.get(name, float("nan")) for row in rows]
        content[f"log.{name}"] = torch.tensor(column, dtype=torch.float64)
    path = folder / f"{update:08d}.safetensors"
    with record.publish(path, stage=stage, inputs={}) as temporary:
        tensor_files.write(temporary, content, {"key": key, "update": update})
    paths = sorted(folder.glob("[0-9]*.safetensors"))
    stop = paths.index(path) + 1
    for old in set(paths) - set(paths[max(stop - NUM_FILES, 0) : stop]):  # later ones belong to another run
        old.unlink()
        record.sidecar(old).unlink(missing_ok=True)


def resume(
    folder: Path, *, key: str, trainer: Trainer, log: Callable[[str], None], monitor: Monitor | None = None
) -> tuple[int, list[dict[str, float]]]:
    """Restores the newest undamaged checkpoint with this key; a log line names each checkpoint that is ignored.

    Returns:
        The next update and the log rows so far; (0, []) if there is no such checkpoint.

    Raises:
        ValueError: an undamaged checkpoint with this key does not hold what `save` writes.
    """
    for path in sorted(folder.glob("[0-9]*.safetensors"), reverse=True):
        try:
            record.check(path)
            tensors, metadata = tensor_files.load(path)
        except ValueError as error:
            log(f"ignoring checkpoint {path.name}: {error}")
            continue
        if metadata.get("key") != key:
            log(f"ignoring checkpoint {path}: it belongs to another spec, version or input")
            continue
        try:
            update, rows = _update(path, metadata), _rows(tensor_files.part("log.", tensors))
            known = ("log.", "state.", *(("monitor.",) if monitor else ()))
            if odd := [name for name in tensors if not name.startswith(known)]:
                raise ValueError(f"{odd[0]} is unknown")
            state.restore(trainer, tensor_files.part("state.", tensors))
            if monitor:
                monitor.restore(tensor_files.part("monitor.", tensors))
            if odd := sorted(trainer.earlier.keys() ^ trainer.earlier_calls(update).keys()):
                raise ValueError(f"kept.{odd[0]} is {'unknown' if odd[0] in trainer.earlier else 'missing'}")
        except ValueError as error:
            raise ValueError(f"{path} is not a usable checkpoint ({error}): remove it and run again") from error
        log(f"continuing at update {update} from {path}")
        return update, rows
    return 0, []


def _update(path: Path, metadata: Mapping[str, object]) -> int:
    update = metadata.get("update")
    if type(update) is not int or path.stem != f"{update:08d}":
        raise ValueError(f"its update is {update!r}")
    return update


def _rows(columns: dict[str, torch.Tensor]) -> list[dict[str, float]]:
    """Log rows from columns."""
    num = next(iter(columns.values())).numel() if columns else 0
    for name, column in columns.items():
        sharding.check_like(f"log.{name}", column, torch.empty(num, dtype=torch.float64))
    values = {name: column.tolist() for name, column in columns.items()}
    for name in ("update", "phase") if columns else ():
        if not all(value.is_integer() and 0 <= value < 2**31 for value in values.get(name, [math.nan])):
            raise ValueError(f"log.{name} is not a column of {name} numbers")
    return [{name: column[row] for name, column in values.items()} for row in range(num)]


def clear(folder: Path) -> None:
    """Removes all checkpoints; call it once the trained weights are on disk.

    They do not come back after a power cut: no later run would remove them.
    """
    for pattern in ("[0-9]*.safetensors", ".[0-9]*.json", ".tmp*"):
        for path in folder.glob(pattern):
            path.unlink()
    if folder.is_dir():
        files.sync(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
            files.sync(folder.parent)


def last_checkpoint(folder: Path) -> str:
    """The checkpoint that a new run resumes from, for a message."""
    paths = sorted(folder.glob("[0-9]*.safetensors"))
    return f"last good checkpoint {paths[-1]}" if paths else "no checkpoint was written yet"


def check_finite(row: Mapping[str, float], update: int, folder: Path, *, advice: str) -> None:
    """ValueError if a value of a log row is not finite."""
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if not bad:
        return
    what = f"{', '.join(bad)} not finite at update {update}; {last_checkpoint(folder)}"
    raise ValueError(f"{what}: lower {advice}")
