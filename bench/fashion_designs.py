"""Designs of a teacher of Fashion-MNIST, each trained for 15 minutes of one core: python -m bench.fashion_designs.

Writes bench/results/fashion-designs.json. All designs see the same images in the same order with the same noise levels,
in as many updates as 900 s of CPU time allow, which bare passes measure first. They are compared by the denoising loss
of held-out images at some noise levels, and by the distance of 2,000 images of the averaged weights (Heun, 35 calls) to
the held-out images, in averaged pixels and, with --features FILE, in those of the classifier `fashion64`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import dmd
from dmd.config import Experiments, load
from dmd.config.training import TeacherTraining
from dmd.data.image_shards import ImageReader
from dmd.importers import feature_files
from dmd.metrics.features import FeatureNetwork, extract
from dmd.metrics.frechet import moments_distance
from dmd.metrics.moments import Moments
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.loading import load_denoiser, new_denoiser
from dmd.stages import images, teacher

OUTPUT = Path(__file__).parent / "results" / "fashion-designs.json"
SHARED: dict[str, Any] = {"attention": [7], "dropout": 0.0, "patch": 2}
DESIGNS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"kind": "ddpmpp", "width": 32, "multipliers": [2, 2], "blocks": 1, **SHARED},
    "adm": {"kind": "adm", "width": 32, "multipliers": [2, 2], "blocks": 1, **SHARED},
    "ddpmpp-deep": {"kind": "ddpmpp", "width": 32, "multipliers": [1, 2], "blocks": 2, **SHARED},
}
SECONDS = 900  # of CPU time per design
BATCH = 64
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
NUM_SAMPLES, NUM_HELD_OUT = 2000, 1000


def data(folder: Path) -> Path:
    """The manifest of the images of experiment `fashion`, made once in a folder."""
    output = folder / "images" / "manifest.parquet"
    if not output.exists():
        images.run(output=output, **Experiments(load()).spec("fashion", "images"))
    return output


def updates(network: dict[str, Any]) -> int:
    """Updates that `SECONDS` of CPU time allow: the fastest of some passes with gradients, forward and backward."""
    torch.manual_seed(0)
    denoiser = new_denoiser({**network, "channels": 1, "resolution": 28, "num_classes": 10}, sigma_data=0.7)
    image, label, seconds = torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH) % 10, []
    for _ in range(8):
        begin = time.process_time()
        denoiser(image, torch.ones(BATCH), label).square().mean().backward()
        seconds.append(time.process_time() - begin)
    return int(SECONDS / min(seconds))


def train(folder: Path, name: str) -> dict[str, Any]:
    """Trains a design; its size, number of updates and CPU time."""
    network, begin = DESIGNS[name], time.process_time()
    num = updates(network)
    training = {
        "method": {"name": "denoising", "batch_size": BATCH, "label_dropout": 0.1, "phases": [{"updates": num}]},
        "optimisers": {"student": {"learning_rate": 1.5e-3, "weight_decay": 0.0, "gradient_clip": 1.0}},
        "schedule": {"warmup": 100, "decay": "cosine"},
        "ema_decay": 0.995,
        "log_every": 20,
    }
    output = folder / name / "denoiser.safetensors"
    teacher.run(
        output=output,
        table=output.with_name("log.parquet"),
        kind="train",
        images=data(folder),
        network=network,
        training=TeacherTraining.model_validate(training),
    )
    denoiser, _ = load_denoiser(output)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    return {"network": network, "parameters": count, "updates": num, "cpu_s": round(time.process_time() - begin)}


@torch.no_grad()
def losses(path: Path, held_out: ImageReader) -> dict[str, float]:
    """Squared x0 error of held-out images, in units of the training's weighted loss, at each level of `SIGMAS`."""
    denoiser, _ = load_denoiser(path)
    assert isinstance(denoiser, Denoiser)
    image = held_out.batch(torch.arange(NUM_HELD_OUT))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for level in SIGMAS:
        sigma = torch.full((NUM_HELD_OUT,), level)
        noised = image + per_sample(sigma, image) * noise
        parts = zip(noised.split(100), sigma.split(100), held_out.labels[:NUM_HELD_OUT].split(100), strict=True)
        error = (torch.cat([denoiser(*part) for part in parts]) - image).square().mean()
        found[str(level)] = round(float(error * denoiser.loss_weight(sigma[:1])), 5)
    return found


def moments(network: FeatureNetwork, values: torch.Tensor) -> Moments:
    """Moments of the features of images, in 256 levels."""
    return Moments.of(torch.cat([extract(network, part, 256)[0] for part in values.split(500)]))


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("designs", nargs="*", help=f"default: all, {', '.join(DESIGNS)}")
    parser.add_argument("--folder", type=Path, required=True, help="where images, trained networks and samples lie")
    parser.add_argument("--features", type=Path, help="workflow/resources/fashion64.safetensors")
    parser.add_argument("--score", action="store_true", help="score what an earlier call trained")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    networks = {"fd-pixels8": feature_files.load(None, {"kind": "pixels", "size": 8}, modes=None)[0]}
    if parsed.features:
        networks["fd-fashion64"] = feature_files.load(parsed.features, {"kind": "fashion64"}, modes=None)[0]
    held_out = ImageReader(data(parsed.folder), "held_out")
    real = held_out.batch(torch.arange(len(held_out)))
    for name in parsed.designs or DESIGNS:
        path = parsed.folder / name / "denoiser.safetensors"
        if not parsed.score:
            results[name] = train(parsed.folder, name)
        results[name]["loss"] = losses(path, held_out)
        drawn = dmd.load(path, device="cpu", batch_size=100)(NUM_SAMPLES, label="balanced", seed=0)
        for metric, network in networks.items():
            distance = moments_distance(moments(network, drawn), moments(network, real))
            results[name][metric] = round(distance, 4)
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(results.items()))
        OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
