"""Whether teacher, start, pairs and numbers of a distillation fit together."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmd import loading
from dmd.artifacts.manifest import Manifest
from dmd.methods.numbers import Numbers
from dmd.methods.phases import Phase
from dmd.stages import stage

Facts = Mapping[str, Any]


def with_sigma(numbers: Numbers, started: Facts, path: Path) -> Numbers:
    """The numbers with a sigma: where it is null, the last noise level of the file to start from.

    Raises:
        ValueError: sigma null, and the file names no last level; or a level beyond it.
    """
    if numbers["sigma"] is None:
        if started.get("sigma_max") is None:
            raise ValueError(
                f"distill.method.sigma: null is the last noise level of {path}, which names none; give a number"
            )
        numbers = {**numbers, "sigma": float(started["sigma_max"])}
    loading.check_noise_scale(dict(started), numbers["sigma"], path)
    return numbers


def check(teacher: Facts, start: Facts, pairs: Facts, sigma: float, paths: tuple[Path, Path, Path]) -> None:
    """ValueError unless classes, condition, shapes and noise scale are the same.

    A first time of the pairs' solver that is not that of the generator is a line in the log.

    Args:
        teacher, start: metadata of the files of teacher and start.
        pairs: facts of the manifest.
        sigma: noise level of the generator's input.
        paths: of teacher, start and manifest.
    """
    if start["num_classes"] != teacher["num_classes"]:
        raise ValueError(
            f"{paths[0]} knows {teacher['num_classes']} classes, {paths[1]} {start['num_classes']}: they must agree"
        )
    if start.get("text") != teacher.get("text"):
        raise ValueError(
            f"{paths[0]} takes text states {teacher.get('text')}, {paths[1]} {start.get('text')}: they must agree"
        )
    if start["shape"] != teacher["shape"] or pairs["shape"] != teacher["shape"]:
        raise ValueError(
            f"{paths[0]} makes images {teacher['shape']}, {paths[1]} {start['shape']}, "
            f"{paths[2]} holds {pairs['shape']}: they must agree"
        )
    if pairs.get("sigma") is not None and not math.isclose(pairs["sigma"], sigma, rel_tol=1e-6):
        raise ValueError(
            f"{paths[2]} was solved from sigma {pairs['sigma']}, distill.method.sigma is {sigma}: "
            "pairs teach the generator only at its own noise scale"
        )
    levels = (start.get("preconditioning") or {}).get("alphas_cumprod")
    if (first := pairs.get("first_timestep")) is not None and levels and first != len(levels) - 1:
        stage.log(
            f"the solver of the pairs starts at time {first:g}, the generator at {len(levels) - 1}, from equal noise"
        )


def check_pairs(phases: Iterable[Phase], pairs: Manifest) -> None:
    """ValueError if a phase wants more pairs than the manifest holds."""
    for phase in phases:
        if (phase.numbers["num_pairs"] or 0) > len(pairs):
            raise ValueError(
                f"distill.method.phases[{phase.index}].num_pairs: {phase.numbers['num_pairs']}, "
                f"but {pairs.path} holds {len(pairs)}"
            )
