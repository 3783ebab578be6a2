"""One update of a text-to-image distillation, with a batch of the size that each of the paper's 72 GPUs had.

The matching loss has 32 images; the regression loss (LPIPS through the tiny decoder) has 16 pairs, which also join the
matching batch. The real score has guidance. Passes are in bfloat16 with gradient checkpointing. The time includes
drawing random numbers and the log row, but not reading pairs.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from bench import gpu_experiment, setting, updates
from bench.gpu_passes import fresh, milliseconds, synchronise
from bench.gpu_text_parts import GUIDANCE, TextSize, codec, denoiser, last_sigma
from dmd.config.training import Distill
from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.models.adapters import add_adapters, with_network
from dmd.models.compute import Compute
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.lora import Adapter
from dmd.train.data import Stream
from dmd.train.measured_update import measured_steps, memory_plan
from dmd.train.memory import distance_bytes
from dmd.train.networks import NetworkSet

COMPUTE = Compute(dtype="bfloat16", gradient_checkpointing=True)
UPDATES, MATCHED = 20_000, 2304  # of the paper's run on LAION-Aesthetics 6.25+: updates, and matching batch size
CARDS = (1, 8, 72)


def measure(size: TextSize, adapter: Adapter | None) -> dict[str, Any]:
    """Milliseconds and peak memory of an update, the memory plan, and extrapolated hours of the paper's run.

    Args:
        adapter: settings of the adapters of student and fake denoiser on the teacher's network; None: both are whole
            networks.
    """
    fresh()
    matched, regressed = 2 * size.micro_batch_size, size.micro_batch_size
    modules, distance = _denoisers(size, adapter), _distance(size)
    section = _section(modules["student"], matched=matched, regressed=regressed)
    trainer = updates.trainer(section, modules, size.shape, text=True, sigma_data=1.0, distance=distance)
    streams = _streams(size, matched=matched, regressed=regressed)
    plan = memory_plan(trainer, measured_steps(trainer, streams), lambda num: distance_bytes(distance, size.shape, num))
    runner = updates.Updates(trainer, streams)
    cuda = size.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(size.device)
    step = milliseconds(runner.next, size)
    runner.close()
    peak = {"peak_gib": _gib(torch.cuda.max_memory_allocated(size.device))} if cuda else {}
    alone = _optimisers_alone(trainer.networks, size)
    return {
        "matched": matched,
        "regressed": regressed,
        "micro_batch_size": size.micro_batch_size,
        "adapter": adapter,
        "compute": dict(COMPUTE),
        "trained_parameters": sum(weight.numel() for weight in trainer.networks.weights("student").parameters()),
        "update_ms": step,
        "optimisers_ms": round(alone, 3),
        **peak,
        "planned_gib": {name: _gib(size) for name, size in plan.items()} | {"sum": _gib(sum(plan.values()))},
        "hours": hours(step["median"], alone, matched=matched),
    }


def hours(update: float, alone: float, *, matched: int) -> dict[str, float]:
    """Hours of the paper's 20,000 updates by number of GPUs, without communication.

    Args:
        update: milliseconds of an update with `matched` images and half as many pairs.
        alone: milliseconds of the optimiser steps in it, which every GPU runs in full.
        matched: images in the matching batch, without those of the pairs.
    """
    by_cards = {}
    for cards in CARDS:
        passes = (update - alone) * MATCHED / matched / cards
        by_cards[f"{cards} card{'s' if cards > 1 else ''}"] = round((passes + alone) / 3.6e6 * UPDATES, 3)
    return by_cards


def _denoisers(size: TextSize, adapter: Adapter | None) -> dict[str, Denoiser]:
    """Real score with guidance, student and fake denoiser, as in stage distill."""
    roles = ("teacher", "student", "fake")
    if adapter is None:
        denoisers = {role: denoiser(size, COMPUTE) for role in roles}
    else:
        carrier = denoiser(size, COMPUTE)
        views = add_adapters(carrier.network, adapter, roles[1:], seed=0)
        denoisers = {role: with_network(carrier, view) for role, view in zip(roles, views, strict=True)}
    return denoisers | {"teacher": with_guidance(denoisers["teacher"], size.states(), GUIDANCE)}


def _section(student: Denoiser, *, matched: int, regressed: int) -> Distill:
    return setting.distill(
        shared_noise=False,
        batch_size=matched,
        compute={**COMPUTE, "micro_batch_size": regressed},
        regression_batch_size=regressed,
        sigma=last_sigma(student),
        levels={"kind": "teacher"},
        guidance=GUIDANCE,
        match_pairs=True,
    )


def _distance(size: TextSize) -> DecodedDistance:
    """LPIPS through the tiny decoder, which runs in bfloat16 with checkpointing as the networks do."""
    decoder = codec(size, size.small_autoencoder)
    decoder.dtype, decoder.checkpointing = torch.bfloat16, True
    return DecodedDistance(gpu_experiment.lpips(size.lpips).to(size.device), decoder)


def _streams(size: TextSize, *, matched: int, regressed: int) -> dict[str, Stream]:
    """Noise, text states and pairs, on the CPU as in training."""
    noise = {"noise": size.noise(matched).cpu(), "label": size.states(matched).cpu()}
    pairs = {"noise": size.noise(regressed).cpu(), "label": size.states(regressed).cpu()}
    return {
        "noise": updates.FixedRows(noise),
        "pairs": updates.FixedRows({**pairs, "image": size.noise(regressed).cpu()}),
    }


def _optimisers_alone(networks: NetworkSet, size: TextSize) -> float:
    """Milliseconds of both optimisers with clipping, and of the moving average."""
    times = []
    for _ in range(size.repetitions):
        for role in networks.optimisers:
            for weight in networks.weights(role).parameters():
                weight.grad = torch.zeros_like(weight)
        synchronise(size.device)
        start = time.perf_counter()
        for optimiser in networks.optimisers.values():
            optimiser.update()
        networks.average_student()
        synchronise(size.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _gib(size: int) -> float:
    return round(size / 2**30, 3)
