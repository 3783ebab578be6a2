"""Teachers from files of others: one function for all kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmd.cluster import reporting
from dmd.importers import diffusers, edm, openai, stable_diffusion
from dmd.importers import pipeline_files as pipelines
from dmd.models import loading
from dmd.provenance import record

Tensors = dict[str, torch.Tensor]


class Importer(NamedTuple):
    """How a kind of teacher is read: the files it consists of, then its weights and facts."""

    files: Callable[[Path], list[Path]]
    load: Callable[[Path, int | None], tuple[Tensors, dict[str, Any]]]


KINDS = {
    "edm": Importer(lambda source: [source], lambda source, _: edm.load(source)),
    "diffusers": Importer(diffusers.source_files, lambda source, _: diffusers.load(source)),
    "stable-diffusion": Importer(stable_diffusion.source_files, lambda source, _: stable_diffusion.load(source)),
    "openai": Importer(lambda source: [source], lambda source, side: openai.load(source, side or 64)),
}


def load(
    kind: str, source: Path, *, sha256: str | None, resolution: int | None = None
) -> tuple[Tensors, dict[str, Any], record.Inputs]:
    """Weights and facts of a teacher that others have trained, checked against the network they belong to.

    Args:
        kind: one of `KINDS`.
        source: its file or folder.
        sha256: what the digest begins with, that of the file, or of a folder the one over the names and digests of
            its files; None takes any.
        resolution: side of the images, for kind openai, whose files say nothing of it; None is 64.

    Returns:
        Tensors `ema.*`, and `text.empty` where there are prompts; what stage teacher writes as metadata: network,
        preconditioning, sigma_data, shape, num_classes, source_sha256 and, where the source limits or says them,
        sigma_min, sigma_max, scheduler, text and image_shape; digests of the files.

    Raises:
        ValueError: the source is missing, is not the pinned one, cannot be used, or its weights do not fit.
    """
    digests, digest = pipelines.digests(source, KINDS[kind].files(source), sha256, key="teacher.sha256")
    tensors, facts = KINDS[kind].load(source, resolution)
    state = {name.removeprefix("ema."): value for name, value in tensors.items() if name.startswith("ema.")}
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: weights that are not finite: {', '.join(bad[:5])}")
    loading.check_network(facts["network"], state, source)
    count = sum(value.numel() for value in state.values())
    limit = f", sigma up to {facts['sigma_max']:.6g}" if "sigma_max" in facts else ""
    reporting.log(f"{source}: network {facts['network']['kind']}, {count} parameters, images {facts['shape']}{limit}")
    inputs = {"source": {str(path): found for path, found in digests.items()}}
    return tensors, {**facts, "source_sha256": digest}, inputs
