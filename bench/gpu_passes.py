"""Passes of one network on a device: milliseconds by precision, layout and compilation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench import clock
from bench.attempts import LATE, Over
from dmd.models.compute import Compute, prepare, set_tf32
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build

HALF = Compute(dtype="bfloat16")
MODES: dict[str, tuple[Compute, str | None]] = {  # compute, mode of torch.compile
    "float32": (Compute(), None),
    "tf32": (Compute(tf32=True), None),
    "bfloat16": (HALF, None),
    "bfloat16, channels_last": (Compute(dtype="bfloat16", channels_last=True), None),
    "bfloat16, compiled": (HALF, "default"),
    "bfloat16, compiled, CUDA graphs": (HALF, "reduce-overhead"),
}


class Timed(Protocol):
    """The device and the number of repetitions of a measurement."""

    @property
    def device(self) -> torch.device:
        """Device of the work."""

    @property
    def repetitions(self) -> int:
        """Number of measured calls."""


@dataclass(frozen=True)
class Size:
    """What is measured: a network, a device, the batch size of a pass, and the settings of an experiment.

    Attributes:
        batch_size: images in a pass; micro-batch size of the experiment.
        whole: images, and also pairs, in an update of the experiment.
        updates: number of updates of the experiment.
        compute: section `compute` of the experiment in config.yaml, without micro-batches.
        lpips: input size of LPIPS in pixels.
        backend: backend of torch.compile; "eager" tests the code without compiling.
    """

    network: dict[str, Any]
    batch_size: int
    device: torch.device
    whole: int
    updates: int
    compute: Compute
    lpips: int = 224
    repetitions: int = 5
    backend: str = "inductor"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.network["channels"], self.network["resolution"], self.network["resolution"]


def denoiser(size: Size, compute: Compute, mode: str | None = None) -> Denoiser:
    """A denoiser with random weights, also in layers that start at zero, in eval mode."""
    torch.manual_seed(0)
    with size.device:
        result = Denoiser(build(size.network), sigma_data=0.5).to(size.device).eval()
    for weight in result.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    prepare(result, compute)
    if mode is not None:
        options = {} if size.backend == "eager" or mode == "default" else {"mode": mode}
        result.network.compile(dynamic=False, backend=size.backend, **options)
    return result


def fresh() -> None:
    """Drops compiled code, since all networks of a class share torch's recompile limit; makes exceeding it an error."""
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def batch(size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, noise levels and labels."""
    label = torch.full((size.batch_size,), -1 if size.network["num_classes"] == 0 else 0, device=size.device)
    return torch.randn(size.batch_size, *size.shape, device=size.device), torch.ones_like(label).float(), label


def milliseconds(work: Callable[[], object], size: Timed) -> dict[str, float]:
    """Wall-clock milliseconds of `work` until the device is done: median and range, after two warm-up calls."""
    times = []
    for number in range(size.repetitions + 2):
        synchronise(size.device)
        start = time.perf_counter()
        work()
        synchronise(size.device)
        if number >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return clock.spread(times)


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(size: Size, over: Over) -> dict[str, Any]:
    """Milliseconds of a forward pass, and of forward and backward, in each mode; skips modes once `over()` is true."""
    figures: dict[str, Any] = {}
    inputs = batch(size)
    for name, (compute, mode) in MODES.items():
        if over():
            figures[name] = LATE
            continue
        set_tf32(compute)
        fresh()
        network = denoiser(size, compute, mode)

        def forward(network: Denoiser = network) -> None:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                network(*inputs)

        def both(network: Denoiser = network) -> None:
            torch.compiler.cudagraph_mark_step_begin()
            network(*inputs).square().mean().backward()
            network.zero_grad()

        figures[name] = {"forward_ms": milliseconds(forward, size), "forward_backward_ms": milliseconds(both, size)}
    set_tf32(Compute())
    return _with_ratios(figures)


def _with_ratios(figures: dict[str, Any]) -> dict[str, Any]:
    """Adds the ratio of each time to that of float32."""
    for figure in figures.values():
        if isinstance(figure, dict):
            for name in ("forward", "forward_backward"):
                base = figures["float32"][f"{name}_ms"]["median"]
                figure[f"{name}_over_float32"] = round(figure[f"{name}_ms"]["median"] / base, 3)
    return figures
