"""Reads a teacher that stage `teacher_file` wrote from a training of this project."""

from pathlib import Path
from typing import Any

import torch

from dmd.models import loading
from dmd.provenance import tensor_files

KIND = "teacher-file"
NEEDED = ("network", "shape", "num_classes", "sigma_data")  # facts of a teacher
OTHERS = ("dataset_sha256", "label_dropout")


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Averaged weights (`ema.*`, float32) and the facts of the training.

    Raises:
        ValueError: the file is damaged, or no file of stage `teacher_file`.
    """
    tensors, metadata = tensor_files.load(path)
    if metadata.get("kind") != KIND:
        raise ValueError(
            f"{path} is of kind {metadata.get('kind')!r:.50}, not {KIND}: it is no file of stage teacher_file"
        )
    loading.check_facts(metadata, path)
    if odd := [name for name, value in tensors.items() if not name.startswith("ema.") or not value.is_floating_point()]:
        raise ValueError(f"{path} holds something else than averaged weights: {', '.join(odd[:3])[:200]}")
    facts = {name: metadata[name] for name in (*NEEDED, *OTHERS) if name in metadata}
    return {name: value.float() for name, value in tensors.items()}, facts
