"""Speed and memory on a GPU at the paper's sizes: python -m bench.gpu [--tiny] [--only NETWORK] [--output FILE].

After nine minutes nothing new begins; what has begun ends first, and compiling may take minutes.

Networks with random weights. Writes JSON: the card, versions, and for each network
passes: milliseconds forward, and forward and backward, in each precision, layout and compilation;
pairs: images per second of the solver, and that over calls of the bare network;
distill: an update over the sum of its bare passes, with its peak memory and the memory plan;
experiment: seconds of a whole update of stage distill as config.yaml has it (LPIPS, pairs read, micro batches), and
hours of all updates;
methods: an update of the other methods in bfloat16, with its peak memory and the memory plan.
Stable Diffusion 1.5 comes first and begins nothing after four minutes, unless it is alone: see `bench.gpu_text`.
What is measured is written after each network.
--tiny takes networks of a few thousand weights on any device, to prove that all of it runs.
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
from bench.attempts import FAILED, Over, attempted
from bench.gpu_passes import HALF, MODES, Size
from dmd.cluster import torch_setup
from dmd.models.compute import Compute, set_tf32
from dmd.models.networks.released import CIFAR10, IMAGENET64

SECONDS = 520.0  # after these nothing new begins
TEXT_SECONDS = 240.0  # after these nothing of text to image, where other networks are still to come
TEXT = "sd15"
NAMES = (TEXT, "cifar10", "imagenet64")
OUTPUT = Path(__file__).parent / "results"
TINY = {"kind": "ddpmpp", "resolution": 8, "channels": 3, "width": 8, "multipliers": [1, 2], "blocks": 1}
TINY |= {"attention": [4], "num_classes": 10}
STEPPED = ("bfloat16", "bfloat16, compiled")  # modes of pairs and distill


def main() -> None:
    """Measures, prints and writes; exits 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on a CPU if need be")
    parser.add_argument("--output", type=Path, help="JSON file; bench/results/gpu-CARD.json where none is named")
    parser.add_argument("--only", choices=NAMES, help="one network; no file but FILE is written")
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
        sys.exit(f"figures that begin with {FAILED!r} say what went wrong; the traces stand above")


def networks(begin: float, *, tiny: bool, only: str | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each network, in order; `only` is one of `NAMES`, `begin` the time the suite began at."""
    torch_setup.set_threads(os.cpu_count() or 1)
    device = torch_setup.choose_device("auto")  # with the switches of torch that stages work with
    seconds = SECONDS if only or tiny else TEXT_SECONDS
    text, pixels = gpu_text_parts.size(device, tiny=tiny), sizes(device, tiny=tiny)
    found = {TEXT: lambda: gpu_text.measure(text, lambda: time.monotonic() - begin > seconds)}
    for name, size in pixels.items():
        found[name] = lambda size=size: measured(size, lambda: time.monotonic() - begin > SECONDS)  # type: ignore[misc]
    return {name: work for name, work in found.items() if only in (None, name)}


def sizes(device: torch.device, *, tiny: bool) -> dict[str, Size]:
    """Networks of pixels: CIFAR-10 first, since it takes less time."""
    if tiny:
        return {"tiny": Size(TINY, 2, device, 4, 10, Compute(), lpips=16, repetitions=2, backend="eager")}
    return {
        "cifar10": Size(CIFAR10, 98, device, 392, 300_000, Compute(tf32=True)),
        "imagenet64": Size(IMAGENET64, 48, device, 336, 350_000, Compute(dtype="bfloat16")),
    }


def measured(size: Size, over: Over) -> dict[str, Any]:
    """All figures of one network of pixels."""
    figures: dict[str, Any] = {"batch_size": size.batch_size, "network": size.network}
    figures["experiment"] = attempted(lambda: gpu_experiment.measure(size), over)
    figures["passes"] = attempted(lambda: gpu_passes.measure(size, over))
    for mode in STEPPED:
        compute, compiled = MODES[mode]
        for name, measure in (("pairs", gpu_step.pairs), ("distill", gpu_step.distill)):
            set_tf32(compute)
            work = lambda measure=measure, compute=compute, compiled=compiled: measure(size, compute, compiled)  # noqa: E731
            figures.setdefault(name, {})[mode] = attempted(work, over)
    set_tf32(HALF)
    figures["methods"] = attempted(lambda: gpu_methods.measure(size, HALF), over)
    return figures


def setting() -> dict[str, Any]:
    """Card, driver's memory, and versions."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        found |= {"capability": f"{card.major}.{card.minor}", "cudnn": torch.backends.cudnn.version()}
    return found


if __name__ == "__main__":
    main()
