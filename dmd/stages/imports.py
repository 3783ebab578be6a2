"""Teachers from files of others: one function for all kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dmd import loading
from dmd.artifacts import pinned
from dmd.stages import stage, teacher_edm

Loaded = tuple[dict[str, torch.Tensor], dict[str, Any]]
KINDS: dict[str, Callable[[Path], Loaded]] = {"edm": teacher_edm.load}


def load(kind: str, source: Path, *, sha256: str | None) -> Loaded:
    """Weights and facts of a teacher that others have trained, checked against the network they belong to.

    Returns:
        Tensors `ema.*`, and what stage teacher writes as metadata: network, preconditioning, sigma_data, shape,
        num_classes, source_sha256 and, where the file limits them, sigma_min and sigma_max.

    Raises:
        ValueError: the source is missing, is not the pinned one, cannot be used, or its weights do not fit.
    """
    digest = pinned.check(source, sha256, key="teacher.sha256")
    tensors, facts = KINDS[kind](source)
    state = {name.removeprefix("ema."): value for name, value in tensors.items()}
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: weights that are not finite: {', '.join(bad[:5])}")
    with torch.device("meta"):
        denoiser = loading.new_denoiser(facts["network"], sigma_data=facts["sigma_data"])
    loading.load_network(denoiser, state, source)
    count = sum(value.numel() for value in state.values())
    stage.log(f"{source}: network {facts['network']['kind']}, {count} parameters, images {facts['shape']}")
    return tensors, {**facts, "source_sha256": digest}
