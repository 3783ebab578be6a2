"""Teacher, generator and fake denoiser of a distillation from their files, on their device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmd import loading
from dmd.diffusion.compute import Compute, prepare
from dmd.diffusion.denoiser import Denoiser
from dmd.diffusion.guidance import guided
from dmd.methods.numbers import Numbers
from dmd.networks.adapters import carried, with_network
from dmd.networks.lora import Adapter, size
from dmd.stages import stage


class Networks(NamedTuple):
    """The three denoisers, and what their files say.

    Attributes:
        real: the teacher; it needs no network.
        facts, started: of the teacher's file, and of the one that generator and fake denoiser start from.
    """

    real: torch.nn.Module
    generator: Denoiser
    fake: Denoiser
    facts: dict[str, Any]
    started: dict[str, Any]

    @property
    def denoisers(self) -> tuple[torch.nn.Module, Denoiser, Denoiser]:
        """All three."""
        return self.real, self.generator, self.fake


def load(teacher: Path, start: Path, numbers: Numbers, device: torch.device) -> Networks:
    """Three networks, or one frozen one with two adapters, which is the teacher without them.

    Raises:
        ValueError: a damaged file, one to start from without network, adapters of another file than the teacher's, or
            guidance of a teacher without prompts.
    """
    compute, adapter, guidance = numbers.get("compute", Compute()), numbers.get("adapter"), numbers.get("guidance", 1.0)
    real, facts = loading.load_denoiser(teacher)
    if adapter is None:
        generator, started = loading.load_denoiser(start)
        fake, _ = loading.load_denoiser(start)
        for denoiser in (real, generator, fake):
            prepare(denoiser.to(device), compute)
        real = _real_score(real, teacher, guidance)
        return Networks(real, _trainable(generator, start), _trainable(fake, start), facts, started)
    if start.resolve() != teacher.resolve():
        raise ValueError(
            f"distill.adapter: the network that carries the adapters is the teacher, {teacher}, and cannot start "
            f"from {start}: leave distill.start out"
        )
    carrier = _trainable(real, teacher)
    prepare(carrier.to(device), compute)
    alone, generator, fake = _adapted(carrier, adapter, numbers["seed"])
    return Networks(_real_score(alone, teacher, guidance), generator, fake, facts, facts)


def _adapted(carrier: Denoiser, adapter: Adapter, seed: int) -> tuple[Denoiser, Denoiser, Denoiser]:
    parameters, layers = size(carrier.network, adapter)
    stage.log(f"adapters of rank {adapter['rank']} on {layers} layers: {parameters} parameters each")
    real, generator, fake = carried(carrier.network, adapter, ("generator", "fake"), seed=seed)
    return with_network(carrier, real), with_network(carrier, generator), with_network(carrier, fake)


def _real_score(teacher: torch.nn.Module, path: Path, guidance: float) -> torch.nn.Module:
    """The teacher under guidance; ValueError if it is below 1, or the file at `path` has no empty prompt."""
    if guidance == 1:
        return teacher
    if not isinstance(teacher, Denoiser):
        raise ValueError(f"distill.method.guidance: {guidance:g}, but {path} holds no network that could be guided")
    return guided(teacher, loading.load_empty(path), guidance)


def _trainable(denoiser: torch.nn.Module, path: Path) -> Denoiser:
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{path} holds no network: name an experiment with a trained teacher in distill.start")
    return denoiser
