"""The networks of a method by role: from their files, on their device, and what a training does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmd.config.method import STUDENT, MethodSection, Mode, Role, Source
from dmd.config.training import Adapter, TrainingCompute
from dmd.models import loading
from dmd.models.adapters import carried, trained, with_network
from dmd.models.compute import Compute, compile_network, prepare
from dmd.models.counting import carriers
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import Guided, guided
from dmd.models.lora import Adapter as LoraNumbers
from dmd.models.lora import size
from dmd.train import sharding
from dmd.train.optimiser import Optimiser


class NetworkSet:
    """The networks of a method, the student's moving average, and the optimisers of what is trained.

    Attributes:
        roles: what each network is.
        device: of all networks.
        average: torch's AveragedModel of the student's network, or of its adapter.
        trains: the networks that gradients are left on, see `train_only`.
        optimisers: by role, once `Trainer` made them.
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
        self._parameters = {name: tuple(self._modules[name].parameters()) for name in self.trains}  # to walk once
        self._move = get_ema_multi_avg_fn(ema_decay)
        self.average = AveragedModel(self.weights(STUDENT), multi_avg_fn=self._move)
        self.device = next(self.weights(STUDENT).parameters()).device
        self._spread = False

    def __getitem__(self, role: str) -> nn.Module:
        """The denoiser, or other network, of a role."""
        return self._modules[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def weights(self, role: str) -> nn.Module:
        """The module whose weights are a role's own: its network, its adapter, or itself."""
        module = self._modules[role]
        network = getattr(module, "network", module)
        return trained(network) if isinstance(network, nn.Module) else module

    def network(self, role: str) -> nn.Module | None:
        """What makes the passes of a role: the network within guidance, or with its adapter; None where it is none."""
        network = getattr(self._modules[role], "network", None)
        if not isinstance(network, nn.Module):
            return None
        return network.network if isinstance(network, Guided) else network

    def train_only(self, roles: tuple[str, ...]) -> None:
        """From now on gradients are left on these networks alone; they still pass through all others.

        Parameters that are spread over processes stay as they are, since FSDP2 keeps copies that would not notice: a
        step ends with `drop_gradients`.
        """
        if self._spread:
            return
        for name, parameters in self._parameters.items():
            if (name in roles) != (name in self.trains):
                for parameter in parameters:
                    parameter.requires_grad_(name in roles)
        self.trains = roles

    def drop_gradients(self, trains: tuple[str, ...]) -> None:
        """Forgets gradients that a step left on networks that it does not train."""
        if self._spread:
            for name in self.optimisers.keys() - set(trains):
                self.weights(name).zero_grad()

    def use_dropout(self, roles: tuple[str, ...]) -> None:
        """From now on dropout is on in these networks alone."""
        for name, module in self._modules.items():
            if module.training != (name in roles):
                module.train(name in roles)

    @torch.no_grad()
    def average_student(self) -> None:
        """Moves the moving average after a step of the student; the first step sets it."""
        if not self.average.n_averaged:
            self.average.update_parameters(self.weights(STUDENT))
            return
        parameters, buffers = self._averaged  # `update_parameters` would list them anew in every update
        self._move(*parameters, self.average.n_averaged)
        for mine, theirs in zip(*buffers, strict=True):
            mine.copy_(theirs)
        self.average.n_averaged += 1

    @cached_property
    def _averaged(self) -> tuple[list[list[nn.Parameter]], list[list[torch.Tensor]]]:
        """Parameters of the moving average and of the student, then their buffers; listed after `shard`."""
        both = self.average.module, self.weights(STUDENT)
        return [list(each.parameters()) for each in both], [list(each.buffers()) for each in both]

    @torch.no_grad()
    def copy(self, role: str, source: str, *, averaged: bool = False) -> None:
        """Sets the weights of `role` to those of `source`; `averaged` takes the student's moving average."""
        if averaged and source != STUDENT:
            raise ValueError(f"only the student has a moving average, not {source}")
        other = self.average.module if averaged else self.weights(source)
        for mine, theirs in _matched(self.weights(role), other):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, role: str, source: str, decay: float) -> None:
        """Moves the weights of `role` towards those of `source`: decay * role + (1 - decay) * source."""
        for mine, theirs in _matched(self.weights(role), self.weights(source)):
            mine.lerp_(theirs, 1 - decay) if mine.is_floating_point() else mine.copy_(theirs)

    def restart_average(self) -> None:
        """Begins the student's moving average anew: the next step sets it to the student."""
        self.average.n_averaged.zero_()
        for mine, theirs in _matched(self.average.module, self.weights(STUDENT)):
            mine.detach().copy_(theirs.detach())

    def forget_moments(self, role: str) -> None:
        """Clears the Adam moments of a role."""
        self.optimisers[role].forget_moments()

    def shard(self) -> None:
        """Spreads all networks and the moving average over the processes (FSDP2); trained ones keep gradients."""
        self.train_only(tuple(self._parameters))
        self._parameters = {}  # which would keep the whole ones
        networks = [getattr(module, "network", module) for module in self._modules.values()]
        held = [each for each in networks if next(each.parameters(), None) is not None or carriers(each)]
        sharding.shard([*held, self.average.module])
        self._spread = True

    def kept(self) -> dict[str, nn.Module]:
        """What checkpoints keep of networks: all that are not frozen, and the moving average."""
        own = {
            f"network.{name}": self.weights(name) for name, role in self.roles.items() if role.mode is not Mode.FROZEN
        }
        return own | {"average": self.average}


def load(
    config: MethodSection,
    teacher: loading.DenoiserFile | None,
    start: loading.DenoiserFile | None,
    *,
    adapter: Adapter | None,
    compute: TrainingCompute,
    seed: int,
    device: torch.device,
    new: Callable[[str], nn.Module],
    log: Callable[[str], None],
) -> dict[str, nn.Module]:
    """Every network of a method, on its device; not compiled yet.

    With an adapter one frozen network, the teacher, carries an adapter for each network that changes.

    Args:
        teacher, start: files of the roles that come from them.
        new: the network of a role whose source is NEW, on the CPU.

    Raises:
        ValueError: a damaged file, one to start from without network, adapters of another file than the teacher's, or
            guidance of a teacher without prompts.
    """
    computed = _switches(compute)
    modules: dict[str, nn.Module] = {}
    files = {Source.TEACHER: teacher, Source.START: start, Source.STUDENT: start}
    roles = config.roles()
    from_files = [name for name, role in roles.items() if role.source is not Source.NEW]
    if adapter is None:
        for name in from_files:
            file = files[roles[name].source]
            assert file is not None, name
            denoiser, _ = loading.load_denoiser(file.path)
            if roles[name].mode is not Mode.FROZEN:
                denoiser = _trainable(denoiser, file.path)
            modules[name] = prepare(denoiser.to(device), computed)
    elif teacher is not None and start is not None:
        modules |= _adapted(config, teacher, start, adapter, computed, seed, device, log)
    for name in from_files:
        if roles[name].guidance != 1:
            assert teacher is not None
            modules[name] = _guided(modules[name], teacher.path, roles[name].guidance)
    for name, role in roles.items():
        if role.source is Source.NEW:
            modules[name] = prepare(new(name).to(device), computed)
    return {name: modules[name] for name in roles}


def compile_all(networks: NetworkSet, compute: TrainingCompute) -> None:
    """Compiles the networks where `compute` says so."""
    for role in networks:
        compile_network(networks[role], _switches(compute))


def _switches(compute: TrainingCompute) -> Compute:
    return cast(Compute, compute.model_dump())


def _adapted(
    config: MethodSection,
    teacher: loading.DenoiserFile,
    start: loading.DenoiserFile,
    adapter: Adapter,
    computed: Compute,
    seed: int,
    device: torch.device,
    log: Callable[[str], None],
) -> dict[str, nn.Module]:
    """One network that is the teacher without adapters, and with one each of the others."""
    if start.path.resolve() != teacher.path.resolve():
        raise ValueError(
            f"distill.adapter: the network that carries the adapters is the teacher, {teacher.path}, and cannot start "
            f"from {start.path}: leave distill.start out"
        )
    carrier = _trainable(loading.load_denoiser(teacher.path)[0], teacher.path)
    prepare(carrier.to(device), computed)
    numbers = cast(LoraNumbers, adapter.model_dump())
    parameters, layers = size(carrier.network, numbers)
    log(f"adapters of rank {adapter.rank} on {layers} layers: {parameters} parameters each")
    changing = [
        name for name, role in config.roles().items() if role.mode is not Mode.FROZEN and role.source is not Source.NEW
    ]
    alone, *others = carried(carrier.network, numbers, changing, seed=seed)
    networks = dict(zip(changing, others, strict=True))
    return {
        name: with_network(carrier, networks.get(name, alone))
        for name, role in config.roles().items()
        if role.source is not Source.NEW
    }


def _guided(teacher: nn.Module, path: Path, guidance: float) -> nn.Module:
    if not isinstance(teacher, Denoiser):
        raise ValueError(f"distill.method.guidance: {guidance:g}, but {path} holds no network that could be guided")
    return guided(teacher, loading.load_empty(path), guidance)


def _trainable(denoiser: nn.Module, path: Path) -> Denoiser:
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{path} holds no network: name an experiment with a trained teacher in distill.start")
    return denoiser


def _matched(one: nn.Module, other: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of equal names of two modules of one architecture."""
    mine, theirs = one.state_dict(), other.state_dict()
    if odd := mine.keys() ^ theirs.keys():
        raise ValueError(f"networks differ: {sorted(odd)[0]} is in one of them only")
    for name, value in mine.items():
        yield value, theirs[name]
