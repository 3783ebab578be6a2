"""One update of a distillation of text to image, at the part of the paper's batch that each of its 72 cards had.

32 images are matched and 16 regressed, by LPIPS through the tiny decoder; the 16 join the matching batch, the real
score is guided. bfloat16, gradient checkpointing. Random numbers and the log row are in the time, reading pairs is not.
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
from dmd.methods.parts.decoded import Decoded
from dmd.models.adapters import carried, with_network
from dmd.models.compute import Compute
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import guided
from dmd.models.lora import Adapter
from dmd.train.data import Stream
from dmd.train.memory import distance_bytes
from dmd.train.networks import NetworkSet
from dmd.train.watch import memory_plan, watch

COMPUTE = Compute(dtype="bfloat16", gradient_checkpointing=True)
UPDATES, MATCHED = 20_000, 2304  # of the paper's run on LAION-Aesthetics 6.25+: updates, and matched images of each
CARDS = (1, 8, 72)


def measure(size: TextSize, adapter: Adapter | None) -> dict[str, Any]:
    """Milliseconds and peak memory of an update, the memory plan, and hours of the paper's run by arithmetic.

    Args:
        adapter: of student and fake denoiser, which share the teacher's network; None trains two more networks.
    """
    fresh()
    matched, regressed = 2 * size.micro_batch_size, size.micro_batch_size
    modules, distance = _denoisers(size, adapter), _distance(size)
    section = _section(modules["student"], matched=matched, regressed=regressed)
    trainer = updates.trainer(section, modules, size.shape, text=True, sigma_data=1.0, distance=distance)
    streams = _streams(size, matched=matched, regressed=regressed)
    plan = memory_plan(trainer, watch(trainer, streams), lambda num: distance_bytes(distance, size.shape, num))
    found = updates.Updates(trainer, streams)
    cuda = size.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(size.device)
    step = milliseconds(found.next, size)
    found.close()
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
    """Hours of the paper's 20,000 updates by number of cards; what cards exchange is not counted.

    Args:
        update: milliseconds of an update of `matched` images and half as many pairs.
        alone: those of its optimisers, which every card takes in full.
        matched: images of the matching batch, without those of pairs.
    """
    found = {}
    for cards in CARDS:
        passes = (update - alone) * MATCHED / matched / cards
        found[f"{cards} card{'s' if cards > 1 else ''}"] = round((passes + alone) / 3.6e6 * UPDATES, 3)
    return found


def _denoisers(size: TextSize, adapter: Adapter | None) -> dict[str, Denoiser]:
    """Real score under guidance, student, fake denoiser, as stage distill makes them."""
    roles = ("teacher", "student", "fake")
    if adapter is None:
        found = {role: denoiser(size, COMPUTE) for role in roles}
    else:
        carrier = denoiser(size, COMPUTE)
        views = carried(carrier.network, adapter, roles[1:], seed=0)
        found = {role: with_network(carrier, view) for role, view in zip(roles, views, strict=True)}
    return found | {"teacher": guided(found["teacher"], size.states(), GUIDANCE)}


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


def _distance(size: TextSize) -> Decoded:
    """LPIPS through the tiny decoder, which works as the networks do."""
    decoder = codec(size, size.small_autoencoder)
    decoder.dtype, decoder.checkpointing = torch.bfloat16, True
    return Decoded(gpu_experiment.lpips(size.lpips).to(size.device), decoder)


def _streams(size: TextSize, *, matched: int, regressed: int) -> dict[str, Stream]:
    """Noise, text states and pairs on the CPU, as they are read."""
    noise = {"noise": size.noise(matched).cpu(), "label": size.states(matched).cpu()}
    pairs = {"noise": size.noise(regressed).cpu(), "label": size.states(regressed).cpu()}
    return {"noise": updates.Given(noise), "pairs": updates.Given({**pairs, "image": size.noise(regressed).cpu()})}


def _optimisers_alone(found: NetworkSet, size: TextSize) -> float:
    """Milliseconds of both optimisers, clips and the moving average."""
    times = []
    for _ in range(size.repetitions):
        for role in found.optimisers:
            for weight in found.weights(role).parameters():
                weight.grad = torch.zeros_like(weight)
        synchronise(size.device)
        start = time.perf_counter()
        for optimiser in found.optimisers.values():
            optimiser.update()
        found.average_student()
        synchronise(size.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _gib(size: int) -> float:
    return round(size / 2**30, 3)
