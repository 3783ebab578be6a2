"""Speed and memory on a GPU at the paper's sizes: python -m bench.gpu [--tiny] [--output FILE].

After nine minutes nothing new begins; what has begun ends first, and compiling may take minutes.

Networks with random weights. Writes JSON: the card, versions, and for each network
passes: milliseconds forward, and forward and backward, in each precision, layout and compilation;
pairs: images per second of the solver, and that over calls of the bare network;
distill: an update over the sum of its bare passes, with its peak memory and the memory plan;
experiment: seconds of a whole update of stage distill as config.yaml has it (LPIPS, pairs read, micro batches), and
hours of all updates.
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

from bench import gpu_experiment, gpu_passes, gpu_step
from bench.gpu_passes import MODES, Size
from dmd.diffusion.compute import Compute, set_tf32
from dmd.networks.released import CIFAR10, IMAGENET64
from dmd.stages import stage

LATE = "left out: no time"
SECONDS = 520.0  # after these nothing new begins
OUTPUT = Path(__file__).parent / "results"
TINY = {"kind": "ddpmpp", "resolution": 8, "channels": 3, "width": 8, "multipliers": [1, 2], "blocks": 1}
TINY |= {"attention": [4], "num_classes": 10}
STEPPED = ("bfloat16", "bfloat16, compiled")  # modes of pairs and distill


def main() -> None:
    """Measures, prints and writes; exits 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on a CPU if need be")
    parser.add_argument("--output", type=Path, help="JSON file; bench/results/gpu-CARD.json where none is named")
    parsed = parser.parse_args()
    if not torch.cuda.is_available() and not parsed.tiny:
        sys.exit("no GPU: torch sees none. `python -m bench.gpu --tiny` runs the same code on tiny networks on a CPU")
    begin = time.monotonic()
    figures: dict[str, Any] = {"setting": setting(), "networks": {}}
    for name, size in sizes(tiny=parsed.tiny).items():
        figures["networks"][name] = measured(size, lambda: time.monotonic() - begin > SECONDS)
    figures["seconds"] = round(time.monotonic() - begin)
    text = json.dumps(figures, indent=2, sort_keys=True)
    print(text, flush=True)
    card = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "none"
    output = parsed.output or (None if parsed.tiny else OUTPUT / f"gpu-{card}.json")
    if output is not None:
        output.write_text(text + "\n")


def sizes(*, tiny: bool) -> dict[str, Size]:
    """What is measured: CIFAR-10 first, since it takes less time."""
    stage.set_threads(os.cpu_count() or 1)
    device = stage.choose_device("auto")  # with the switches of torch that stages work with
    if tiny:
        return {"tiny": Size(TINY, 2, device, 4, 10, Compute(), lpips=16, repetitions=2, backend="eager")}
    return {
        "cifar10": Size(CIFAR10, 98, device, 392, 300_000, Compute(tf32=True)),
        "imagenet64": Size(IMAGENET64, 48, device, 336, 350_000, Compute(dtype="bfloat16")),
    }


def measured(size: Size, over: Callable[[], bool]) -> dict[str, Any]:
    """All figures of one network; what fails for want of memory says so."""
    figures: dict[str, Any] = {"batch_size": size.batch_size, "network": size.network}
    figures["experiment"] = attempted(lambda: gpu_experiment.measure(size)) if not over() else LATE
    figures["passes"] = attempted(lambda: gpu_passes.measure(size, over))
    for mode in STEPPED:
        compute, compiled = MODES[mode]
        for name, measure in (("pairs", gpu_step.pairs), ("distill", gpu_step.distill)):
            set_tf32(compute)
            work = lambda measure=measure, compute=compute, compiled=compiled: measure(size, compute, compiled)  # noqa: E731
            figures.setdefault(name, {})[mode] = LATE if over() else attempted(work)
    return figures


def attempted(work: Callable[[], Any]) -> Any:
    """What `work` found, or that the GPU's memory did not suffice."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
