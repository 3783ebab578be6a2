"""Updates of methods other than DMD on a device: time, and peak memory against the memory plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench import updates
from bench.gpu_passes import Size, batch, denoiser, fresh, milliseconds
from dmd.config.method_base import Source
from dmd.config.training import Distill
from dmd.methods import load
from dmd.methods.base import Facts
from dmd.models import loading
from dmd.models.compute import Compute, prepare
from dmd.models.guidance import with_guidance
from dmd.train.data import Stream
from dmd.train.measured_update import measured_steps, memory_plan
from dmd.train.trainer import Trainer

PHASE = {"updates": 1000}
STATES = 4  # of a path
METHODS: dict[str, Mapping[str, object]] = {
    "consistency distillation": {
        "name": "consistency",
        "teach": "distillation",
        "target_decay": 0.95,
        "phases": [PHASE],
    },
    "consistency training": {
        "name": "consistency",
        "teach": "training",
        "metric": {"kind": "pseudo-huber"},
        "weighting": "gap",
        "phases": [PHASE],
    },
    "dmd2": {"name": "dmd2", "phases": [PHASE]},
    "dmd2 with a GAN loss": {"name": "dmd2", "adversarial": {"r1": 1.0}, "phases": [PHASE]},
    "tdm": {"name": "tdm", "phases": [PHASE]},
    "diff-instruct": {"name": "diff-instruct", "phases": [PHASE]},
    "f-distill": {"name": "f-distill", "phases": [PHASE]},
    "gan": {"name": "gan", "phases": [PHASE]},
    "ufogen": {"name": "ufogen", "reconstruction_weight": 1.0, "phases": [PHASE]},
    "ect": {"name": "ect", "phases": [PHASE]},
    "moment-matching": {"name": "moment-matching", "phases": [PHASE]},
    "mean-flow": {"name": "mean-flow", "phases": [PHASE]},
    "scm": {"name": "scm", "phases": [PHASE]},
    "lcm": {"name": "lcm", "levels": {"kind": "karras"}, "times": {"kind": "karras"}, "phases": [PHASE]},
    "meng": {"name": "meng", "phases": [PHASE]},
    "progressive": {"name": "progressive", "phases": [PHASE | {"steps": 1}]},
    "sid": {"name": "sid", "phases": [PHASE]},
    "imm": {"name": "imm", "phases": [PHASE]},
    "ctm": {"name": "ctm", "phases": [PHASE]},
    "dfno": {"name": "dfno", "states": STATES, "phases": [PHASE]},
    "boot": {"name": "boot", "levels": 6, "boundary_weight": 1.0, "phases": [PHASE]},
    "tract": {"name": "tract", "phases": [PHASE | {"groups": 1}]},
    "rectified flow": {"name": "rectified-flow", "objective": "reflow", "phases": [PHASE]},
    "sim": {"name": "sid", "divergence": {"kind": "sim"}, "phases": [PHASE]},
}


def measure(size: Size, compute: Compute) -> dict[str, Any]:
    """Milliseconds of an update with one micro-batch, peak memory and memory plan, for each method."""
    return {name: _update(size, compute, method) for name, method in METHODS.items()}


def _update(size: Size, compute: Compute, method: Mapping[str, object]) -> dict[str, Any]:
    fresh()
    trainer = _trainer(size, compute, method)
    plan = memory_plan(trainer, measured_steps(trainer, _streams(size)), lambda num: 0)
    runner = updates.Updates(trainer, _streams(size))
    if size.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(size.device)
    figures: dict[str, Any] = {"update_ms": milliseconds(runner.next, size)}
    runner.close()
    figures["planned_gib"] = round(sum(plan.values()) / 2**30, 3)
    if size.device.type == "cuda":
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated(size.device) / 2**30, 3)
    return figures


def _trainer(size: Size, compute: Compute, method: Mapping[str, object]) -> Trainer:
    section = Distill.model_validate({"method": {**method, "batch_size": size.batch_size}})
    facts = Facts(size.shape, size.network["num_classes"], 0.5, network=size.network)
    modules: dict[str, nn.Module] = {}
    for name, role in section.method.roles().items():
        if role.source is Source.NEW:
            modules[name] = _new_network(section, name, facts, size)
            continue
        found = denoiser(size, compute)
        if added := role.additions():
            found = loading.extended(found, size.network, **added)
        if not role.guidance_input:
            found = with_guidance(found, torch.tensor(-1), role.guidance)
        modules[name] = prepare(found.to(size.device), compute)
    return updates.trainer(section, modules, size.shape, num_classes=size.network["num_classes"])


def _new_network(section: Distill, role: str, facts: Facts, size: Size) -> nn.Module:
    torch.manual_seed(0)
    return load(section.method.name).new_network(section.method, role, facts).to(size.device)


def _streams(size: Size) -> dict[str, Stream]:
    image, _, label = (part.cpu() for part in batch(size))
    return {
        "noise": updates.FixedRows({"noise": image, "label": label}),
        "images": updates.FixedRows({"image": image, "label": label}),
        "pairs": updates.FixedRows({"noise": image, "image": image, "label": label}),
        "trajectories": updates.FixedRows(
            {
                "noise": image,
                "label": label,
                "trajectory": image[:, None].expand(-1, STATES, -1, -1, -1),
                "levels": torch.linspace(10.0, 0.0, STATES).expand(len(image), -1),
            }
        ),
    }
