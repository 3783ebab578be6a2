"""Loads published teachers of all kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmd.importers import diffusers, edm, openai, stable_diffusion, teacher_file
from dmd.importers import pipeline_files as pipelines
from dmd.jobs import reporting
from dmd.models import loading
from dmd.provenance import outside_files, record, tensor_files

Tensors = dict[str, torch.Tensor]


class Importer(NamedTuple):
    """The readers of one kind of teacher, of a source, a resolution and a variant of the weights.

    `files` lists its files, `load` returns its weights and facts (metadata).
    """

    files: Callable[[Path, str | None], list[Path]]
    load: Callable[[Path, int | None, str | None], tuple[Tensors, dict[str, Any]]]


KINDS = {
    "edm": Importer(lambda source, _: [source], lambda source, side, variant: edm.load(source)),
    "diffusers": Importer(diffusers.source_files, lambda source, side, variant: diffusers.load(source, variant)),
    "stable-diffusion": Importer(
        stable_diffusion.source_files, lambda source, side, variant: stable_diffusion.load(source, variant)
    ),
    "file": Importer(lambda source, _: [source], lambda source, side, variant: teacher_file.load(source)),
    "openai": Importer(lambda source, _: [source], lambda source, side, variant: openai.load(source, side or 64)),
}


def load(
    kind: str, source: Path, *, sha256: str | None, resolution: int | None = None, variant: str | None = None
) -> tuple[Tensors, dict[str, Any], record.Inputs]:
    """Weights and facts of a published teacher, after a check that the weights fit its network.

    Args:
        kind: one of `KINDS`.
        source: file or folder of the teacher.
        sha256: expected digest of the file, or of the names and digests of a folder's files; the first digits are
            enough; None accepts any.
        resolution: side of the images in pixels, for kind openai only, whose files do not contain it; None is 64.
        variant: of the weights in a folder, such as fp16; None: the plain ones, or else the only variant.

    Returns:
        Tensors `ema.*`, and `text.empty` for a text-conditional teacher; the facts, which are metadata of its artifact:
        network, preconditioning, sigma_data, shape, num_classes, source_sha256 and, if the source has them, sigma_min,
        sigma_max, scheduler, text and image_shape; digests of the files.

    Raises:
        ValueError: the source is missing, has another digest, cannot be used, or its weights do not fit.
    """
    digests, digest = pipelines.digests(source, KINDS[kind].files(source, variant), sha256, key="teacher.sha256")
    with outside_files.told(source, "a teacher"):
        tensors, facts = KINDS[kind].load(source, resolution, variant)
    state = tensor_files.part("ema.", tensors)
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: weights that are not finite: {', '.join(bad[:5])}")
    loading.check_network(facts["network"], state, source)
    count = sum(value.numel() for value in state.values())
    limit = f", sigma up to {facts['sigma_max']:.6g}" if "sigma_max" in facts else ""
    reporting.log(f"{source}: network {facts['network']['kind']}, {count} parameters, images {facts['shape']}{limit}")
    inputs = {"source": {str(path): value for path, value in digests.items()}}
    return tensors, {**facts, "source_sha256": digest}, inputs
