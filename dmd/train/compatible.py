"""Whether teacher, start, pairs and numbers of a distillation fit together."""

from __future__ import annotations

import math
from pathlib import Path

from dmd.cluster import reporting
from dmd.config.method import MethodSection
from dmd.data.images import ImageReader
from dmd.data.manifest import Manifest
from dmd.models import loading
from dmd.models.calls import Calls
from dmd.models.loading import DenoiserFile


def check(teacher: DenoiserFile, start: DenoiserFile, pairs: Manifest | None) -> None:
    """ValueError unless classes, condition and shapes are the same."""
    real, started = teacher.facts, start.facts
    if started["num_classes"] != real["num_classes"]:
        raise ValueError(
            f"{teacher.path} knows {real['num_classes']} classes, {start.path} {started['num_classes']}: "
            "they must agree"
        )
    if started.get("text") != real.get("text"):
        raise ValueError(
            f"{teacher.path} takes text states {real.get('text')}, {start.path} {started.get('text')}: they must agree"
        )
    made = {teacher.path: real["shape"], start.path: started["shape"]}
    if pairs is not None:
        made[pairs.path] = pairs.metadata["facts"]["shape"]
    if any(shape != real["shape"] for shape in made.values()):
        held = f", {pairs.path} holds {made[pairs.path]}" if pairs is not None else ""
        raise ValueError(
            f"{teacher.path} makes images {real['shape']}, {start.path} {started['shape']}{held}: they must agree"
        )


def check_levels(calls: Calls | None, start: DenoiserFile, pairs: Manifest | None) -> None:
    """ValueError if the student begins at a level that its file does not know, or that the pairs were not solved from.

    A first time of the pairs' solver that is not that of the student is a line in the log.
    """
    if calls is None:
        return
    sigma = calls.sigmas[0]
    loading.check_noise_scale(start.facts, sigma, start.path)
    solved = {} if pairs is None else pairs.metadata["facts"]
    if pairs is not None and solved.get("sigma") is not None and not math.isclose(solved["sigma"], sigma, rel_tol=1e-6):
        raise ValueError(
            f"{pairs.path} was solved from sigma {solved['sigma']}, distill.method.sigma is {sigma}: "
            "pairs teach the student only at its own noise scale"
        )
    levels = (start.facts.get("preconditioning") or {}).get("alphas_cumprod")
    if (first := solved.get("first_timestep")) is not None and levels and first != len(levels) - 1:
        reporting.log(
            f"the solver of the pairs starts at time {first:g}, the student at {len(levels) - 1}, from equal noise"
        )


def check_images(teacher: DenoiserFile, images: ImageReader, path: Path) -> None:
    """ValueError if the images are not those that the teacher knows, by shape and classes."""
    shape, classes = teacher.facts["shape"], teacher.facts["num_classes"]
    if list(images.shape) != shape or (classes and images.num_classes != classes):
        raise ValueError(
            f"{path} holds images {list(images.shape)} of {images.num_classes} classes, {teacher.path} makes "
            f"{shape} of {classes}: they must agree"
        )


def check_pairs(method: MethodSection, pairs: Manifest | None) -> None:
    """ValueError if a phase wants more pairs than the manifest holds, or the method wants pairs and there are none."""
    if pairs is None:
        if "pairs" in method.reads():
            raise ValueError(f"method {method.name} reads pairs: give --manifest")
        return
    for index, phase in enumerate(method.phases):
        if (getattr(phase, "num_pairs", None) or 0) > len(pairs):
            wanted = f"distill.method.phases[{index}].num_pairs: {phase.num_pairs}"  # type: ignore[attr-defined]
            raise ValueError(f"{wanted}, but {pairs.path} holds {len(pairs)}")
