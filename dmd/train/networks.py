"""The networks of a method by role: loading, averaging, copying, sharding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmd.config.method_base import STUDENT, Mode, Role, Source
from dmd.config.training import Adapter, Distill, Training
from dmd.jobs import reporting
from dmd.models import loading
from dmd.models.adapters import Adapted, add_adapters, trained_part, with_network
from dmd.models.compute import Compute, prepare, slow_dtype
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import Guided, with_guidance
from dmd.models.lora import Adapter as LoraSettings
from dmd.models.lora import size
from dmd.models.tensor_bytes import carriers
from dmd.train import sharding
from dmd.train.optimiser import Optimiser


class NetworkSet:
    """The networks of a method, the student's moving average, and the optimisers.

    Attributes:
        roles: by name.
        device: of all networks.
        average: torch's AveragedModel of the student's network, or of its adapter.
        trains: roles whose weights get gradients now; see `train_only`.
        optimisers: by role; `Trainer.start` makes them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], roles: Mapping[str, Role], *, ema_decay: float) -> None:
        self._modules, self.roles = dict(modules), dict(roles)
        self.optimisers: dict[str, Optimiser] = {}
        for name, module in self._modules.items():
            module.eval().requires_grad_(roles[name].mode is Mode.TRAINED)
        for name, role in roles.items():
            if role.source is Source.STUDENT:
                self.copy(name, STUDENT)
        self.trains = tuple(name for name, role in roles.items() if role.mode is Mode.TRAINED)
        self._parameters = {name: tuple(self._modules[name].parameters()) for name in self.trains}  # listed once
        self._move = get_ema_multi_avg_fn(ema_decay)
        self.average = AveragedModel(self.weights(STUDENT), multi_avg_fn=self._move)
        self.device = next(self.weights(STUDENT).parameters()).device
        self._sharded = False

    def __getitem__(self, role: str) -> nn.Module:
        """The denoiser or other network of a role."""
        return self._modules[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def weights(self, role: str) -> nn.Module:
        """The module that holds a role's own weights: its adapter, else its network, else the role's module itself."""
        module = self._modules[role]
        network = getattr(module, "network", module)
        return trained_part(network) if isinstance(network, nn.Module) else module

    def network(self, role: str) -> nn.Module | None:
        """The network of a role, with its adapter but without the wrapper for guidance; None if there is none."""
        network = getattr(self._modules[role], "network", None)
        if not isinstance(network, nn.Module):
            return None
        return network.network if isinstance(network, Guided) else network

    def train_only(self, roles: tuple[str, ...]) -> None:
        """Lets only the weights of these roles get gradients; gradients still pass through all networks.

        With FSDP2 this does nothing, since its copies of the parameters ignore `requires_grad`; there `drop_gradients`
        removes the other gradients at the end of a step.
        """
        if self._sharded:
            return
        for name, parameters in self._parameters.items():
            if (name in roles) != (name in self.trains):
                for parameter in parameters:
                    parameter.requires_grad_(name in roles)
        self.trains = roles

    def drop_gradients(self, trains: tuple[str, ...]) -> None:
        """Drops the gradients of sharded networks that the step does not train."""
        if self._sharded:
            for name in self.optimisers.keys() - set(trains):
                self.weights(name).zero_grad()

    def use_dropout(self, roles: tuple[str, ...]) -> None:
        """From now on dropout is on in the networks of these roles only."""
        for name, module in self._modules.items():
            if module.training != (name in roles):
                module.train(name in roles)

    @torch.no_grad()
    def average_student(self) -> None:
        """Updates the moving average after a step of the student; the first time it copies the student."""
        if not self.average.n_averaged:
            self.average.update_parameters(self.weights(STUDENT))
            return
        parameters, buffers = self._average_and_student  # torch's `update_parameters` lists them anew each time
        self._move(*parameters, self.average.n_averaged)
        for mine, theirs in zip(*buffers, strict=True):
            mine.copy_(theirs)
        self.average.n_averaged += 1

    @cached_property
    def _average_and_student(self) -> tuple[list[list[nn.Parameter]], list[list[torch.Tensor]]]:
        """Parameters of the moving average and of the student, then their buffers; listed after `shard`."""
        both = self.average.module, self.weights(STUDENT)
        return [list(module.parameters()) for module in both], [list(module.buffers()) for module in both]

    @torch.no_grad()
    def copy(self, role: str, source: str, *, averaged: bool = False) -> None:
        """Sets the weights of `role` to those of `source`; `averaged` takes the student's moving average."""
        if averaged and source != STUDENT:
            raise ValueError(f"only the student has a moving average, not {source}")
        other = self.average.module if averaged else self.weights(source)
        for mine, theirs in _same_tensors(self.weights(role), other):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, role: str, source: str, decay: float) -> None:
        """Moves the weights of `role` towards those of `source`: decay * role + (1 - decay) * source."""
        for mine, theirs in _same_tensors(self.weights(role), self.weights(source)):
            mine.lerp_(theirs, 1 - decay) if mine.is_floating_point() else mine.copy_(theirs)

    @contextlib.contextmanager
    def averaged_student(self) -> Iterator[nn.Module]:
        """The student with its moving average as weights, without dropout and gradients; for use in the block only.

        Meanwhile an adapter has the values of its average.
        """
        student, average = self[STUDENT], self.average.module
        network = getattr(student, "network", None)
        with torch.no_grad():
            if not isinstance(network, Adapted):
                yield average if network is None else with_network(student, average)
                return
            self._swap_average()
            try:
                self.use_dropout(())
                yield student
            finally:
                self._swap_average()

    def _swap_average(self) -> None:
        """Exchanges the weights of the student with their moving average."""
        for mine, theirs in _same_tensors(self.weights(STUDENT), self.average.module):
            value = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(value)

    def restart_average(self) -> None:
        """Resets the student's moving average to its current weights; the next step sets it again."""
        self.average.n_averaged.zero_()
        for mine, theirs in _same_tensors(self.average.module, self.weights(STUDENT)):
            mine.detach().copy_(theirs.detach())

    def shard(self) -> None:
        """Shards all networks and the moving average over processes (FSDP2); then all trained roles get gradients."""
        self.train_only(tuple(self._parameters))
        self._parameters = {}  # frees the unsharded ones
        networks = [getattr(module, "network", module) for module in self._modules.values()]
        with_weights = [net for net in networks if next(net.parameters(), None) is not None or carriers(net)]
        sharding.shard([*with_weights, self.average.module])
        self._sharded = True

    def checkpointed(self) -> dict[str, nn.Module]:
        """Modules that a checkpoint holds: the weights of roles that are not frozen, and the moving average."""
        changing = [name for name, role in self.roles.items() if role.mode is not Mode.FROZEN]
        return {f"network.{name}": self.weights(name) for name in changing} | {"average": self.average}


def load(
    training: Training,
    teacher: loading.DenoiserFile | None,
    start: loading.DenoiserFile | None,
    *,
    device: torch.device,
    new: Callable[[str], nn.Module],
) -> dict[str, nn.Module]:
    """Every network of a method, on its device, not compiled yet.

    With adapters there is one frozen network, the teacher's, with an adapter for each role that changes.

    Args:
        teacher, start: files for the roles with source TEACHER, and with source START or STUDENT.
        new: makes, on the CPU, the network of a role whose source is NEW, its weights drawn from torch's global
            generator, which has the seed of the training.

    Raises:
        ValueError: a damaged file, a start file without a network, adapters with a start file other than the teacher's,
            or guidance of a teacher without an empty condition.
    """
    switches, adapter = compute_switches(training), training.adapter if isinstance(training, Distill) else None
    if warning := slow_dtype(switches, device):
        reporting.log(warning)
    modules: dict[str, nn.Module] = {}
    files = {Source.TEACHER: teacher, Source.START: start, Source.STUDENT: start}
    roles = training.method.roles()
    from_files = [name for name, role in roles.items() if role.source is not Source.NEW]
    if adapter is None:
        for name in from_files:
            file = files[roles[name].source]
            assert file is not None, name
            denoiser, facts = loading.load_denoiser(file.path)
            if roles[name].mode is not Mode.FROZEN:
                denoiser = _trainable(denoiser, file.path)
            if added := roles[name].additions():
                denoiser = loading.extended(_trainable(denoiser, file.path), facts["network"], **added)
            modules[name] = prepare(denoiser.to(device), switches)
    elif teacher is not None and start is not None:
        modules |= _with_adapters(training, teacher, start, adapter, device)
    for name in from_files:
        if roles[name].guidance_input:
            modules[name].guidance = roles[name].guidance  # type: ignore[assignment]
        elif roles[name].guidance != 1:
            assert teacher is not None
            modules[name] = _with_guidance(modules[name], teacher.path, roles[name].guidance)
    torch.manual_seed(training.seed)  # in every process: their new networks begin equal
    for name, role in roles.items():
        if role.source is Source.NEW:
            modules[name] = prepare(new(name).to(device), switches)
    return {name: modules[name] for name in roles}


def compute_switches(training: Training) -> Compute:
    """Section `compute` of a training, as the networks take it."""
    return cast(Compute, training.compute.model_dump())


def _with_adapters(
    training: Training,
    teacher: loading.DenoiserFile,
    start: loading.DenoiserFile,
    adapter: Adapter,
    device: torch.device,
) -> dict[str, nn.Module]:
    """The networks of all roles on one base network: frozen roles use it without adapter, others with their adapter."""
    if start.path.resolve() != teacher.path.resolve():
        raise ValueError(
            f"distill.adapter: the network that carries the adapters is the teacher, {teacher.path}, and cannot start "
            f"from {start.path}: leave distill.start out"
        )
    carrier = _trainable(loading.load_denoiser(teacher.path)[0], teacher.path)
    prepare(carrier.to(device), compute_switches(training))
    settings = cast(LoraSettings, adapter.model_dump())
    parameters, layers = size(carrier.network, settings)
    reporting.log(f"adapters of rank {adapter.rank} on {layers} layers: {parameters} parameters per adapter")
    carried = {name: role for name, role in training.method.roles().items() if role.source is not Source.NEW}
    changing = [name for name, role in carried.items() if role.mode is not Mode.FROZEN]
    without_adapter, *with_adapter = add_adapters(carrier.network, settings, changing, seed=training.seed)
    networks = dict(zip(changing, with_adapter, strict=True))
    return {name: with_network(carrier, networks.get(name, without_adapter)) for name in carried}


def _with_guidance(teacher: nn.Module, path: Path, guidance: float) -> nn.Module:
    if not isinstance(teacher, Denoiser):
        raise ValueError(f"distill.method.guidance: {guidance:g}, but {path} holds no network to guide")
    return with_guidance(teacher, loading.load_empty(path), guidance)


def _trainable(denoiser: nn.Module, path: Path) -> Denoiser:
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{path} holds no network: set distill.start to an experiment whose teacher is a network")
    return denoiser


def _same_tensors(one: nn.Module, other: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of tensors with the same name in two modules; ValueError if a name is in only one of them."""
    mine, theirs = one.state_dict(), other.state_dict()
    if odd := mine.keys() ^ theirs.keys():
        raise ValueError(f"networks differ: {sorted(odd)[0]} is in only one of them")
    for name, value in mine.items():
        yield value, theirs[name]
