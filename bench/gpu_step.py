"""Pairs and distillation on a device against the bare passes of their networks, and memory against its plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import setting
from bench.gpu_passes import Size, batch, denoiser, fresh, milliseconds, synchronise
from dmd.diffusion.compute import Compute
from dmd.diffusion.solver import solve
from dmd.methods.counting import weight_bytes
from dmd.methods.dmd import Distillation
from dmd.methods.memory import activations, distill_parts
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share

SOLVER = {"name": "heun", "steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
NUM_CALLS = 7  # of Heun in 4 steps
PHASE = {"matching_scale": 1.0, "regression_scale": 1.0}


def pairs(size: Size, compute: Compute, mode: str | None) -> dict[str, Any]:
    """Images per second of the solver against as many calls of its network alone."""
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
    """One update on one micro batch, with L2, against the sum of its bare passes; peak memory and plan.

    Without and with a shared noised batch. `bench.gpu_experiment` measures an update of an experiment.
    """
    figures: dict[str, Any] = {}
    for shared in (False, True):
        fresh()
        parts = [denoiser(size, compute, mode) for _ in range(3)]
        numbers = setting.distill_numbers(shared_noise=shared)
        numbers |= {"matching_batch_size": size.batch_size, "regression_batch_size": size.batch_size}
        plan = _plan(size, compute, shared)
        found = Distillation(parts[0].requires_grad_(False), parts[1], parts[2], numbers, l2_distance)
        image, _, label = (part.cpu() for part in batch(size))
        given = Batch(image, label, (image, label, image))

        def update(found: Distillation = found, given: Batch = given, shared: bool = shared) -> None:
            random = update_generator("distill", 0, 0)
            made, row = found.generator_update(given, PHASE, random)
            row |= found.fake_update(made, given.label, random, has_gradient=shared)
            torch.stack([value.double() for value in row.values()]).tolist()

        if size.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(size.device)
        step = milliseconds(update, size)
        peak = torch.cuda.max_memory_allocated(size.device) if size.device.type == "cuda" else 0  # of updates alone
        passes = _passes(size, found)
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
        del found, parts
    return figures


def _plan(size: Size, compute: Compute, shared: bool) -> dict[str, int]:
    eager = denoiser(size, compute)
    weights = weight_bytes(eager)
    numbers = setting.distill_numbers(shared_noise=shared) | {"compute": compute}
    numbers |= {"matching_batch_size": size.batch_size, "regression_batch_size": size.batch_size}
    found = activations(eager, size.shape)
    return distill_parts(numbers, Share(), teacher=weights, trained=weights, found=found, lpips=0)  # type: ignore[arg-type]


def _passes(size: Size, found: Distillation) -> dict[str, float]:
    """Milliseconds of each pass and optimiser step of an update, called alone."""
    given = batch(size)
    gradient = torch.randn_like(given[0])

    def train(network: torch.nn.Module) -> None:
        network(*given).backward(gradient)

    def call(network: torch.nn.Module) -> None:
        with torch.no_grad():
            network(*given)

    teacher = found.teacher
    assert isinstance(teacher, torch.nn.Module)
    generator = milliseconds(lambda: train(found.generator), size)["median"]
    fake = milliseconds(lambda: train(found.fake), size)["median"]
    return {
        "generator forward and backward, twice": 2 * generator,
        "teacher forward": milliseconds(lambda: call(teacher), size)["median"],
        "fake forward": milliseconds(lambda: call(found.fake), size)["median"],
        "fake forward and backward": fake,
        "optimisers, clipping and moving average": _step_alone(found, train, size),
    }


def _step_alone(found: Distillation, train: Callable[[torch.nn.Module], None], size: Size) -> float:
    """Milliseconds of both optimisers, clips and the moving average; passes that make gradients are not counted."""
    times = []
    for _ in range(size.repetitions):
        train(found.generator)
        train(found.fake)
        synchronise(size.device)
        start = time.perf_counter()
        found.generator_optimiser.update()
        found.fake_optimiser.update()
        found.average.update_parameters(found.generator.network)
        synchronise(size.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
