"""Text to image with networks of Stable Diffusion 1.5's size and random weights: pairs, updates, one-step images.

pairs: seconds to draw a latent with PNDM and guidance 3, and the speed relative to bare network calls;
distill: an update (see `bench.gpu_text_step`) of three whole networks, and of adapters on one network;
one_step: images/s from prompt to pixels, with the shares of text encoder, denoiser and decoder, as in stage latency.
Compiled networks come last, since compilation takes minutes.
"""

from __future__ import annotations

from typing import Any

import torch

from bench import gpu_text_step
from bench.attempts import Over, attempt
from bench.gpu_passes import HALF, fresh, milliseconds
from bench.gpu_text_parts import GUIDANCE, TextSize, codec, denoiser, last_sigma, text
from dmd.models.compute import RECOMPILE_LIMIT, Compute, set_tf32
from dmd.models.guidance import with_guidance
from dmd.models.lora import Adapter
from dmd.models.student_calls import Calls
from dmd.sampling.solvers import solve
from dmd.stages.latency import Chain

WARM_UP, REPEATS = 3, 10  # unmeasured and measured batches of one_step


def measure(size: TextSize, over: Over) -> dict[str, Any]:
    """All figures, the most important ones first."""
    set_tf32(HALF)
    figures: dict[str, Any] = {"one_step": {}, "distill": {}, "pairs": {}, "network": size.network}
    figures["one_step"]["bfloat16"] = attempt(lambda: one_step(size, over, compiled=False), over)
    adapters: dict[str, Adapter | None] = {
        "full": None,
        "adapters": {"rank": size.rank, "alpha": None, "targets": None},
    }
    for name, adapter in adapters.items():
        work = lambda adapter=adapter: gpu_text_step.measure(size, adapter)  # noqa: E731
        figures["distill"][name] = attempt(work, over)
    figures["pairs"]["bfloat16"] = attempt(lambda: pairs(size, compiled=False), over)
    figures["one_step"]["bfloat16, compiled"] = attempt(lambda: one_step(size, over, compiled=True), over)
    figures["pairs"]["bfloat16, compiled"] = attempt(lambda: pairs(size, compiled=True), over)
    return figures


def pairs(size: TextSize, *, compiled: bool) -> dict[str, Any]:
    """Seconds to draw a latent with PNDM and guidance, and the speed relative to bare calls on doubled batches."""
    fresh()
    teacher = denoiser(size, Compute(dtype="bfloat16", channels_last=True))
    if compiled:
        _compile(size, teacher.network)
    num = max(size.steps // 5, 1)  # bare calls in a measurement
    solver = {"name": "pndm", "steps": size.steps, "spacing": None}
    guided = with_guidance(teacher, size.states(), GUIDANCE)
    noise, states = size.noise(size.drawn), size.states(size.drawn)
    doubled = size.noise(2 * size.drawn), noise.new_full((2 * size.drawn,), 500.0), size.states(2 * size.drawn)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(num):
                teacher.predict(*doubled)

    calls = solve(guided, noise, states, solver)[1]
    call = milliseconds(bare, size)["median"] / num
    solved = milliseconds(lambda: solve(guided, noise, states, solver), size)
    return {
        "batch_size": size.drawn,
        "guidance": GUIDANCE,
        "network_calls": calls,
        "call_ms": round(call, 3),
        "batch_ms": solved,
        "seconds_per_pair": round(solved["median"] / 1000 / size.drawn, 4),
        "speed_over_bare_network": round(calls * call / solved["median"], 4),
    }


def one_step(size: TextSize, over: Over, *, compiled: bool) -> dict[str, Any]:
    """Figures of stage latency for a student, by batch size; compiled networks are channels-last."""
    fresh()
    generator = denoiser(size, Compute(dtype="bfloat16", channels_last=compiled))
    decoder, encoder = codec(size, size.autoencoder), text(size)
    if compiled:
        decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in (generator.network, decoder.autoencoder.decoder, encoder.encoder):
            _compile(size, module)
    solver = {"name": "student", "calls": Calls((last_sigma(generator),)).facts()}
    options: dict[str, Any] = {"solver": solver, "shape": size.shape, "num_classes": 0, "device": size.device}
    chain = Chain(generator, encoder, decoder, torch.bfloat16, **options)
    return {
        str(num): attempt(lambda num=num: chain.measure(num, repeats=REPEATS, warmup=WARM_UP), over)  # type: ignore[misc]
        for num in size.batch_sizes
    }


def _compile(size: TextSize, module: torch.nn.Module) -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    module.compile(dynamic=False, backend=size.backend)
