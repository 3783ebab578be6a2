"""Updates of stage distill with LPIPS at the sizes of an experiment, and the hours of all updates."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench import setting, updates
from bench.gpu_passes import Size, fresh, milliseconds
from dmd.methods.parts.distances import Lpips, lpips_shapes
from dmd.models.compute import set_tf32


def measure(size: Size) -> dict[str, Any]:
    """Times an update: drawing noise, reading pairs, both losses, both optimisers, moving average, log row.

    Weights of the teacher and of VGG are random; the first two updates are not counted.
    """
    fresh()
    set_tf32(size.compute)
    with tempfile.TemporaryDirectory() as name:
        updates_of_stage = _updates(size, Path(name))
        if size.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(size.device)
        step = milliseconds(updates_of_stage.next, size)
        updates_of_stage.close()
    figures: dict[str, Any] = {
        "images": size.whole,
        "micro_batch_size": size.batch_size,
        "compute": dict(size.compute),
        "update_ms": step,
        "updates": size.updates,
        "hours": round(step["median"] / 3.6e6 * size.updates, 3),
    }
    if size.device.type == "cuda":
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated(size.device) / 2**30, 3)
    return figures


def lpips(size: int) -> Lpips:
    """LPIPS on a VGG16 with random weights, scaled so that activations keep their size."""
    trunk, heads = lpips_shapes()
    drawn = {
        name: torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if name.endswith("weight") else torch.zeros(shape)
        for name, shape in trunk.items()
    }
    positive = {name: torch.rand(shape) for name, shape in heads.items()}
    return Lpips(drawn, positive, pooling="average", size=size)


def _updates(size: Size, folder: Path) -> updates.Updates:
    """Updates of the stage, on a teacher of random weights and the pairs of one update."""
    teacher, manifest = folder / "teacher" / "denoiser.safetensors", folder / "pairs" / "blocks" / "pairs.parquet"
    setting.write_teacher(teacher, size.network)
    exact = folder / "exact" / "denoiser.safetensors"  # fast pairs, since their content does not matter
    setting.write_exact_teacher(exact, resolution=size.network["resolution"])
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(exact, manifest, first=0, last=0, shard_size=size.whole, solver=solver)
    compute = {**size.compute, "micro_batch_size": size.batch_size}
    section = setting.distill(shared_noise=False, batch_size=size.whole, compute=compute)
    distance = lpips(size.lpips).to(size.device)
    return updates.from_files(teacher, manifest, section, device=size.device, distance=distance)
