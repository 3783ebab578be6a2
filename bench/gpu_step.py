"""Time of pairs and distillation on a device against bare network passes, and memory against the memory plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import setting, updates
from bench.gpu_passes import Size, batch, denoiser, fresh, milliseconds, synchronise
from dmd.models.compute import Compute
from dmd.sampling.solvers import solve
from dmd.train.data import Stream
from dmd.train.measured_update import measured_steps, memory_plan
from dmd.train.networks import NetworkSet
from dmd.train.trainer import Trainer

SOLVER = {"name": "heun", "steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
NUM_CALLS = 7  # of Heun in 4 steps


def pairs(size: Size, compute: Compute, mode: str | None) -> dict[str, Any]:
    """Images per second of the solver, and its speed relative to as many bare calls of the network."""
    fresh()
    teacher = denoiser(size, compute, mode).requires_grad_(False)
    noise, sigma, label = batch(size)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(NUM_CALLS):
                teacher(noise, sigma, label)

    alone, solved = milliseconds(bare, size), milliseconds(lambda: solve(teacher, noise, label, SOLVER), size)
    return {
        "images_per_second": round(1000 * size.batch_size / solved["median"], 2),
        "network_calls": NUM_CALLS,
        "speed_over_bare_network": round(alone["median"] / solved["median"], 4),
    }


def distill(size: Size, compute: Compute, mode: str | None) -> dict[str, Any]:
    """An update with one micro-batch and L2 distance, against the sum of its bare passes; peak memory and plan.

    Measured without and with `shared_noise`. `bench.gpu_experiment` measures an update of an experiment.
    """
    figures: dict[str, Any] = {}
    for shared in (False, True):
        fresh()
        eager = _trainer(size, compute, None, shared)
        plan = memory_plan(eager, measured_steps(eager, _streams(size)), lambda num: 0)
        del eager
        runner = updates.Updates(_trainer(size, compute, mode, shared), _streams(size))
        if size.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(size.device)
        step = milliseconds(runner.next, size)
        peak = torch.cuda.max_memory_allocated(size.device) if size.device.type == "cuda" else 0  # of updates only
        runner.close()
        passes = _passes(size, runner.trainer.networks)
        bare = sum(passes.values()) - (passes["fake forward"] if shared else 0.0)
        name = "shared_noise" if shared else "own_noise"
        figures[name] = {
            "update_ms": step,
            "bare_passes_ms": {key: round(value, 3) for key, value in passes.items()},
            "over_bare_passes": round(step["median"] / bare, 4),
            "planned_gib": round(sum(plan.values()) / 2**30, 3),
        }
        if size.device.type == "cuda":
            figures[name]["peak_gib"] = round(peak / 2**30, 3)
        del runner
    return figures


def _trainer(size: Size, compute: Compute, mode: str | None, shared: bool) -> Trainer:
    """A trainer of networks with the given section `compute` and compile mode."""
    section = setting.distill(shared_noise=shared, batch_size=size.batch_size)
    modules = {role: denoiser(size, compute, mode) for role in section.method.roles()}
    return updates.trainer(section, modules, size.shape, num_classes=size.network["num_classes"])


def _streams(size: Size) -> dict[str, Stream]:
    image, _, label = (part.cpu() for part in batch(size))
    rows = {"noise": image, "label": label}
    return {"noise": updates.FixedRows(rows), "pairs": updates.FixedRows({**rows, "image": image})}


def _passes(size: Size, networks: NetworkSet) -> dict[str, float]:
    """Milliseconds of each pass and of the optimiser steps of an update, each timed alone."""
    inputs = batch(size)
    gradient = torch.randn_like(inputs[0])
    networks.train_only(("student", "fake"))

    def train(role: str) -> None:
        networks[role](*inputs).backward(gradient)

    def call(role: str) -> None:
        with torch.no_grad():
            networks[role](*inputs)

    student = milliseconds(lambda: train("student"), size)["median"]
    fake = milliseconds(lambda: train("fake"), size)["median"]
    return {
        "student forward and backward, twice": 2 * student,
        "teacher forward": milliseconds(lambda: call("teacher"), size)["median"],
        "fake forward": milliseconds(lambda: call("fake"), size)["median"],
        "fake forward and backward": fake,
        "optimisers, clipping and moving average": _step_alone(networks, train, size),
    }


def _step_alone(networks: NetworkSet, train: Callable[[str], None], size: Size) -> float:
    """Milliseconds of both optimisers with clipping, and of the moving average, without passes."""
    times = []
    for _ in range(size.repetitions):
        for role in networks.optimisers:
            train(role)
        synchronise(size.device)
        start = time.perf_counter()
        for optimiser in networks.optimisers.values():
            optimiser.update()
        networks.average_student()
        synchronise(size.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
