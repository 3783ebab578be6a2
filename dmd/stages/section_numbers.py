"""The numbers of the trainers of today, from the sections that the configuration has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmd.config.training import CADENCE, Distill, TeacherTraining

if TYPE_CHECKING:
    from dmd.methods.numbers import Numbers  # torch


def numbers_of(distill: Distill, device: str, threads: int) -> Numbers:
    """What `Training` and `Distillation` take.

    Raises:
        ValueError: another schedule than one over the whole run, or optimisers that differ in more than their rate.
    """
    section = distill.whole()
    method = section["method"]
    student, fake = section["optimisers"]["student"], section["optimisers"]["fake"]
    if fake | {"learning_rate": 0} != student | {"learning_rate": 0}:
        raise ValueError("distill.optimisers: student and fake may differ in learning_rate alone")
    if section["schedule"]["over"] != "run":
        raise ValueError("distill.schedule.over: phase is not possible yet")
    distance = {key: value for key, value in method.pop("regression_distance").items() if key != "file"}
    numbers: Any = {key: value for key, value in method.items() if key != "name"}
    numbers["regression_distance"] = distance
    numbers["optimiser"] = {**student, "fake_learning_rate": fake["learning_rate"]}
    numbers["optimiser"] |= {key: section["schedule"][key] for key in ("warmup", "decay")}
    numbers |= {key: section[key] for key in ("adapter", "ema_decay", "seed", "processes", "compute", *CADENCE)}
    return numbers | {"device": device, "threads": threads}


def teacher_numbers_of(training: TeacherTraining) -> dict[str, Any]:
    """What `DenoiserTraining` takes, and the seed.

    Raises:
        ValueError: what it does not know.
    """
    section = training.whole()
    method, (phase, *others) = section["method"], section["method"]["phases"]
    if others or phase["learning_rate_scale"] != 1 or method["label_dropout"]:
        raise ValueError("teacher.training: several phases, learning_rate_scale and label_dropout are not possible yet")
    numbers = {key: method[key] for key in ("batch_size", "sigma_log_mean", "sigma_log_std")}
    student = section["optimisers"]["student"]
    numbers |= {key: student[key] for key in ("learning_rate", "weight_decay", "betas", "gradient_clip")}
    numbers |= {key: section["schedule"][key] for key in ("warmup", "decay")}
    return numbers | {"updates": phase["updates"], "ema_decay": section["ema_decay"], "seed": section["seed"]}
