"""One update of a distillation of text to image, at the part of the paper's batch that each of its 72 cards had.

32 images are matched and 16 regressed, by LPIPS through the tiny decoder; the 16 join the matching batch, the real
score is guided. bfloat16, gradient checkpointing. Random numbers and the log row are in the time, reading pairs is not.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from bench import gpu_experiment, setting
from bench.gpu_passes import fresh, milliseconds, synchronise
from bench.gpu_text_parts import GUIDANCE, TextSize, codec, denoiser, last_sigma
from dmd.diffusion.compute import Compute
from dmd.diffusion.denoiser import Denoiser
from dmd.diffusion.guidance import guided
from dmd.methods.counting import weight_bytes
from dmd.methods.decoded import Decoded
from dmd.methods.dmd import Distillation
from dmd.methods.memory import activations, distill_parts, lpips_bytes
from dmd.methods.numbers import Batch, Numbers
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from dmd.networks.adapters import carried, trained, with_network
from dmd.networks.lora import Adapter

COMPUTE = Compute(dtype="bfloat16", gradient_checkpointing=True)
UPDATES, MATCHED = 20_000, 2304  # of the paper's run on LAION-Aesthetics 6.25+: updates, and matched images of each
CARDS = (1, 8, 72)
PHASE = {"matching_scale": 1.0, "regression_scale": 1.0}


def measure(size: TextSize, adapter: Adapter | None) -> dict[str, Any]:
    """Milliseconds and peak memory of an update, the memory plan, and hours of the paper's run by arithmetic.

    Args:
        adapter: of generator and fake denoiser, which share the teacher's network; None trains two more networks.
    """
    fresh()
    real, generator, fake = _denoisers(size, adapter)
    numbers, share = _numbers(size, generator, adapter), Share(micro_batch_size=size.micro_batch_size)
    distance = _distance(size)
    plan = _plan(size, numbers, share, (real, generator), distance)
    found = Distillation(real, generator, fake, numbers, distance, share)
    batch = _batch(size, numbers)

    def update() -> None:
        random = update_generator("distill", 0, 0)
        made, row = found.generator_update(batch, PHASE, random)
        row |= found.fake_update(made, batch.joined_label, random)
        torch.stack([value.double() for value in row.values()]).tolist()

    cuda = size.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(size.device)
    step = milliseconds(update, size)
    peak = {"peak_gib": _gib(torch.cuda.max_memory_allocated(size.device))} if cuda else {}
    alone = _optimisers_alone(found, size)
    return {
        "matched": numbers["matching_batch_size"],
        "regressed": numbers["regression_batch_size"],
        "micro_batch_size": size.micro_batch_size,
        "adapter": adapter,
        "compute": dict(COMPUTE),
        "trained_parameters": sum(weight.numel() for weight in generator.parameters()),
        "update_ms": step,
        "optimisers_ms": round(alone, 3),
        **peak,
        "planned_gib": {name: _gib(size) for name, size in plan.items()} | {"sum": _gib(sum(plan.values()))},
        "hours": hours(step["median"], alone, matched=numbers["matching_batch_size"]),
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


def _denoisers(size: TextSize, adapter: Adapter | None) -> tuple[Denoiser, Denoiser, Denoiser]:
    """Real score under guidance, generator, fake denoiser, as stage distill makes them."""
    empty = size.states()
    if adapter is None:
        real, generator, fake = (denoiser(size, COMPUTE) for _ in range(3))
    else:
        carrier = denoiser(size, COMPUTE)
        networks = carried(carrier.network, adapter, ("generator", "fake"), seed=0)
        real, generator, fake = (with_network(carrier, network) for network in networks)
    return guided(real, empty, GUIDANCE), generator, fake


def _numbers(size: TextSize, generator: Denoiser, adapter: Adapter | None) -> Numbers:
    return {
        **setting.distill_numbers(shared_noise=False),
        "sigma": last_sigma(generator),
        "levels": {"kind": "teacher", "min_index": 20, "max_index": 980},
        "matching_batch_size": 2 * size.micro_batch_size,
        "regression_batch_size": size.micro_batch_size,
        "guidance": GUIDANCE,
        "match_pairs": True,
        "compute": {**COMPUTE, "micro_batch_size": size.micro_batch_size},
        "adapter": adapter,
    }


def _distance(size: TextSize) -> Decoded:
    """LPIPS through the tiny decoder, which works as the networks do."""
    decoder = codec(size, size.small_autoencoder)
    decoder.dtype, decoder.checkpointing = torch.bfloat16, True
    return Decoded(gpu_experiment.lpips(size.lpips).to(size.device), decoder)


def _plan(
    size: TextSize, numbers: Numbers, share: Share, denoisers: tuple[Denoiser, Denoiser], distance: Decoded
) -> dict[str, int]:
    """Bytes by purpose, as stage distill logs them; blocks of diffusers are counted as if not checkpointed."""
    teacher, learnt = (weight_bytes(denoiser) for denoiser in denoisers)
    lpips = lpips_bytes(distance, size.shape, share.largest(numbers["regression_batch_size"]))
    found = activations(denoisers[1], size.shape)
    return distill_parts(numbers, share, teacher=teacher, trained=learnt, found=found, lpips=lpips)


def _batch(size: TextSize, numbers: Numbers) -> Batch:
    """Noise, text states and pairs on the CPU, as they are read."""
    matched, regressed = numbers["matching_batch_size"], numbers["regression_batch_size"]
    pairs = (size.noise(regressed).cpu(), size.states(regressed).cpu(), size.noise(regressed).cpu())
    return Batch(size.noise(matched).cpu(), size.states(matched).cpu(), pairs)


def _optimisers_alone(found: Distillation, size: TextSize) -> float:
    """Milliseconds of both optimisers, clips and the moving average."""
    times = []
    for _ in range(size.repetitions):
        for each in (found.generator, found.fake):
            for weight in each.parameters():
                weight.grad = torch.zeros_like(weight)
        synchronise(size.device)
        start = time.perf_counter()
        found.generator_optimiser.update()
        found.fake_optimiser.update()
        found.average.update_parameters(trained(found.generator.network))
        synchronise(size.device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _gib(size: int) -> float:
    return round(size / 2**30, 3)
