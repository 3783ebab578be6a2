"""Checks that teacher, start, data and configuration of a distillation fit together."""

from __future__ import annotations

import math
from pathlib import Path

from dmd.config.method_base import PAIRED, STUDENT, MethodSection
from dmd.data.image_shards import ImageReader
from dmd.data.manifest import Manifest
from dmd.jobs import reporting
from dmd.models import loading
from dmd.models.loading import DenoiserFile
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING, check_sigma, trained_range


def check_denoisers(teacher: DenoiserFile, start: DenoiserFile, pairs: Manifest | None) -> None:
    """ValueError unless teacher, start and pairs have the same classes, condition and shape."""
    real, first = teacher.facts, start.facts
    if first["num_classes"] != real["num_classes"]:
        raise ValueError(
            f"{teacher.path} has {real['num_classes']} classes, {start.path} has {first['num_classes']}: "
            "they must be equal"
        )
    if first.get("text") != real.get("text"):
        raise ValueError(
            f"{teacher.path} takes text states {real.get('text')}, {start.path} takes {first.get('text')}: "
            "they must be equal"
        )
    shapes = {teacher.path: real["shape"], start.path: first["shape"]}
    if pairs is not None:
        shapes[pairs.path] = pairs.metadata["facts"]["shape"]
    if any(shape != real["shape"] for shape in shapes.values()):
        held = f", {pairs.path} holds {shapes[pairs.path]}" if pairs is not None else ""
        raise ValueError(
            f"{teacher.path} makes images {real['shape']}, {start.path} makes {first['shape']}{held}: "
            "they must be equal"
        )


def check_guidance(teacher: DenoiserFile, start: DenoiserFile, method: MethodSection) -> None:
    """ValueError if teacher and start differ in the guidance that they take as an input, or the method keeps none."""
    ranges = [loading.guidance_range(file.facts) for file in (teacher, start)]
    if ranges[0] != ranges[1]:
        raise ValueError(
            f"{teacher.path} takes guidance {ranges[0]} as an input, {start.path} takes {ranges[1]}: they must be equal"
        )
    if ranges[0] is not None and not method.keeps_guidance:
        raise ValueError(
            f"{teacher.path} takes the guidance as an input, which a student of method {method.name} would lose: only "
            "method progressive keeps it"
        )


def check_times(calls: Calls, start: DenoiserFile, key: str) -> None:
    """ValueError if a call is at a noise level that the start file was not trained on; `key` is the section's."""
    low, high = trained_range(start.facts)
    for number, sigma in enumerate(calls.sigmas, start=1):
        if not low * (1 - ROUNDING) <= sigma <= high * (1 + ROUNDING):
            raise ValueError(
                f"{key}: call {number} of {len(calls.sigmas)} is at sigma {sigma:.6g}, but {start.path} was trained on "
                f"{low:.6g} .. {high:.6g}: set levels within this range; with kind karras, sigma_max: null is its "
                "highest level"
            )


def check_levels(calls: Calls, start: DenoiserFile, pairs: Manifest | None) -> None:
    """ValueError if the student's first noise level is above those of its start file, or differs from the pairs'.

    If the pairs' solver starts at another timestep than the student, this is logged.
    """
    sigma = calls.sigmas[0]
    check_sigma(start.facts, sigma, start.path)
    facts = {} if pairs is None else pairs.metadata["facts"]
    if pairs is not None and facts.get("sigma") is not None and not math.isclose(facts["sigma"], sigma, rel_tol=1e-6):
        raise ValueError(
            f"{pairs.path} has pairs solved from sigma {facts['sigma']}, but distill.method.sigma is {sigma}: "
            "they must be equal"
        )
    levels = (start.facts.get("preconditioning") or {}).get("alphas_cumprod")
    if (first := facts.get("first_timestep")) is not None and levels and first != len(levels) - 1:
        reporting.log(
            f"the pairs' solver starts at timestep {first:g}, the student at {len(levels) - 1}, with the same noise"
        )


def check_images(teacher: DenoiserFile, images: ImageReader, path: Path) -> None:
    """ValueError unless the images have the teacher's shape and, if the teacher has classes, as many classes."""
    shape, classes = teacher.facts["shape"], teacher.facts["num_classes"]
    if list(images.shape) != shape or (classes and images.num_classes != classes):
        raise ValueError(
            f"{path} holds images {list(images.shape)} of {images.num_classes} classes, {teacher.path} makes "
            f"{shape} of {classes}: they must be equal"
        )


def check_pairs(method: MethodSection, pairs: Manifest | None) -> None:
    """ValueError if the method reads pairs and there are none, or more of them or of their states than there are."""
    if pairs is None:
        if read := sorted(method.reads() & PAIRED):
            raise ValueError(f"method {method.name} reads {read[0]}: give --manifest")
        return
    if "trajectories" in method.reads():
        num, kept = method.roles()[STUDENT].states, len(pairs.metadata["facts"].get("trajectory_sigmas", ()))
        if num != kept:
            raise ValueError(
                f"distill.method.states: {num}, but {pairs.path} holds {kept} states of each trajectory: they must be "
                "equal"
            )
    for index, phase in enumerate(method.phases):
        if (getattr(phase, "num_pairs", None) or 0) > len(pairs):
            key = f"distill.method.phases[{index}].num_pairs: {phase.num_pairs}"  # type: ignore[attr-defined]
            raise ValueError(f"{key}, but {pairs.path} holds {len(pairs)}")
