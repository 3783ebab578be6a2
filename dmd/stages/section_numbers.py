"""What the trainers of denoisers and generators take, from the sections of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmd.config.training import CADENCE, Distill, TeacherTraining

if TYPE_CHECKING:
    from dmd.methods.numbers import Numbers  # torch


def numbers_of(distill: Distill, device: str, threads: int) -> Numbers:
    """What `Training` and `Distillation` take; the section refuses what they cannot do."""
    section = distill.whole()
    method = section["method"]
    student, fake = section["optimisers"]["student"], section["optimisers"]["fake"]
    distance = {key: value for key, value in method.pop("regression_distance").items() if key != "file"}
    numbers: Any = {key: value for key, value in method.items() if key != "name"}
    numbers["regression_distance"] = distance
    numbers["optimiser"] = {**student, "fake_learning_rate": fake["learning_rate"]}
    numbers["optimiser"] |= {key: section["schedule"][key] for key in ("warmup", "decay")}
    numbers |= {key: section[key] for key in ("adapter", "ema_decay", "seed", "processes", "compute", *CADENCE)}
    return numbers | {"device": device, "threads": threads}


def teacher_numbers_of(training: TeacherTraining) -> dict[str, Any]:
    """What `DenoiserTraining` takes, and the seed; the section refuses what it cannot do."""
    section = training.whole()
    method, (phase,) = section["method"], section["method"]["phases"]
    numbers = {key: method[key] for key in ("batch_size", "sigma_log_mean", "sigma_log_std")}
    student = section["optimisers"]["student"]
    numbers |= {key: student[key] for key in ("learning_rate", "weight_decay", "betas", "gradient_clip")}
    numbers |= {key: section["schedule"][key] for key in ("warmup", "decay")}
    return numbers | {"updates": phase["updates"], "ema_decay": section["ema_decay"], "seed": section["seed"]}
