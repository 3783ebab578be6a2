"""Speed and memory on a GPU at the paper's sizes: python -m bench.gpu [--tiny] [--only NETWORK] [--output FILE].

No measurement begins after 520 seconds; a running one is finished, and compilation may take minutes.

Networks have random weights. Writes JSON with the GPU, versions, and for each network:
passes: milliseconds of a forward pass, and of forward and backward, by precision, layout and compilation;
pairs: images per second of the solver, and its speed relative to bare calls of the network;
distill: time of an update divided by that of its bare passes, with peak memory and memory plan;
experiment: milliseconds of a whole update of stage distill with the settings of config.yaml (LPIPS, pairs read from
disk, micro-batches), and hours of all updates;
methods: milliseconds of an update of each other method in bfloat16, also of those that refuse it in a training, with
peak memory and memory plan.
Stable Diffusion 1.5 comes first; it begins no measurement after 240 seconds, unless it is the only network: see
`bench.gpu_text`. The file is written after each network.
--tiny measures networks of a few thousand weights on any device, to test the code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_experiment, gpu_methods, gpu_passes, gpu_step, gpu_text, gpu_text_parts
from bench.attempts import FAILED, Over, attempt
from bench.gpu_passes import HALF, MODES, Size
from dmd.jobs import torch_setup
from dmd.models.compute import Compute, set_tf32
from dmd.models.networks.published_architectures import CIFAR10, IMAGENET64

SECONDS = 520.0  # no measurement begins later than this after the start
TEXT_SECONDS = 240.0  # the same limit for text to image, if other networks follow
TEXT = "sd15"
NAMES = (TEXT, "cifar10", "imagenet64")
OUTPUT = Path(__file__).parent / "results"
TINY = {"kind": "ddpmpp", "resolution": 8, "channels": 3, "width": 8, "multipliers": [1, 2], "blocks": 1}
TINY |= {"attention": [4], "num_classes": 10}
STEPPED = ("bfloat16", "bfloat16, compiled")  # modes of pairs and distill


def main() -> None:
    """The command line; exits 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on a CPU if there is no GPU")
    parser.add_argument("--output", type=Path, help="JSON file; default: bench/results/gpu-CARD.json")
    parser.add_argument("--only", choices=NAMES, help="measure one network, and write JSON only to --output")
    parsed = parser.parse_args()
    if parsed.tiny and parsed.only not in (None, TEXT):
        parser.error(f"--tiny has no {parsed.only}")
    if not torch.cuda.is_available() and not parsed.tiny:
        sys.exit("no GPU: torch sees none. `python -m bench.gpu --tiny` runs the same code on tiny networks on a CPU")
    begin = time.monotonic()
    card = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "none"
    output = parsed.output or (None if parsed.tiny or parsed.only else OUTPUT / f"gpu-{card}.json")
    figures: dict[str, Any] = {"setting": setting(), "networks": {}}
    for name, work in networks(begin, tiny=parsed.tiny, only=parsed.only).items():
        figures["networks"][name] = work()
        figures["seconds"] = round(time.monotonic() - begin)
        text = json.dumps(figures, indent=2, sort_keys=True)
        if output is not None:
            output.write_text(text + "\n")
    print(text, flush=True)
    if FAILED in text:
        sys.exit(f"some measurements failed: see figures that begin with {FAILED!r}, and the traces above")


def networks(begin: float, *, tiny: bool, only: str | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """A measuring function per network, in order; `only`: a name of `NAMES`; `begin`: start time of the benchmark."""
    torch_setup.set_threads(os.cpu_count() or 1)
    device = torch_setup.choose_device("auto")  # sets the switches of torch that stages use
    seconds = SECONDS if only or tiny else TEXT_SECONDS
    text, pixels = gpu_text_parts.size(device, tiny=tiny), sizes(device, tiny=tiny)
    works = {TEXT: lambda: gpu_text.measure(text, lambda: time.monotonic() - begin > seconds)}
    for name, size in pixels.items():
        works[name] = lambda size=size: measure(size, lambda: time.monotonic() - begin > SECONDS)  # type: ignore[misc]
    return {name: work for name, work in works.items() if only in (None, name)}


def sizes(device: torch.device, *, tiny: bool) -> dict[str, Size]:
    """Pixel-space networks: CIFAR-10 first, since it takes less time."""
    if tiny:
        return {"tiny": Size(TINY, 2, device, 4, 10, Compute(), lpips=16, repetitions=2, backend="eager")}
    return {
        "cifar10": Size(CIFAR10, 98, device, 392, 300_000, Compute(tf32=True)),
        "imagenet64": Size(IMAGENET64, 48, device, 336, 350_000, Compute(dtype="bfloat16")),
    }


def measure(size: Size, over: Over) -> dict[str, Any]:
    """All measurements of one pixel-space network."""
    figures: dict[str, Any] = {"batch_size": size.batch_size, "network": size.network}
    figures["experiment"] = attempt(lambda: gpu_experiment.measure(size), over)
    figures["passes"] = attempt(lambda: gpu_passes.measure(size, over))
    for mode in STEPPED:
        compute, compiled = MODES[mode]
        for name, step in (("pairs", gpu_step.pairs), ("distill", gpu_step.distill)):
            set_tf32(compute)
            work = lambda step=step, compute=compute, compiled=compiled: step(size, compute, compiled)  # noqa: E731
            figures.setdefault(name, {})[mode] = attempt(work, over)
    set_tf32(HALF)
    figures["methods"] = attempt(lambda: gpu_methods.measure(size, HALF), over)
    return figures


def setting() -> dict[str, Any]:
    """The GPU, its memory, and versions of software."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {"card": card.name, "gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        facts |= {"capability": f"{card.major}.{card.minor}", "cudnn": torch.backends.cudnn.version()}
    return facts


if __name__ == "__main__":
    main()
