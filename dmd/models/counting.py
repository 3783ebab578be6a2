"""Bytes of tensors: those that autograd keeps for a backward pass, and those alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmd.models.adapters import Adapted
from dmd.models.networks.block import Block

Storages = dict[int, torch.UntypedStorage]


@dataclass(frozen=True)
class Line:
    """Bytes of some rows of a batch: `each` a row, and `once` (weights cast to bfloat16)."""

    each: int
    once: int

    def of(self, num: int) -> int:
        """Bytes of `num` rows."""
        return self.once + num * self.each


def weight_bytes(module: nn.Module) -> int:
    """Parameters and buffers; of networks with adapters the adapter, or without it what is frozen."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for part in module.modules() if isinstance(part, Adapted) for value in part.frozen]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def carriers(module: nn.Module) -> list[nn.Module]:
    """Networks whose passes a module makes without owning them: those that carry its adapter."""
    return [part.carrier for part in module.modules() if isinstance(part, Adapted)]


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes alive at once of tensors that `work` makes; temporary memory of kernels is not seen."""
    with Peak() as peak:
        work()
    return peak.most


def kept_bytes(module: nn.Module, work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a forward pass `work` keeps for its backward pass: as it is, and with checkpointed blocks.

    Parameters and buffers do not count. A checkpointed block keeps its inputs, and one block at a time the rest.
    """
    inputs: Storages = {}
    outside: Storages = {}
    inside: list[Storages] = []
    current = [outside]

    def enter(block: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        inputs.update({_key(tensor): tensor.untyped_storage() for tensor in given})
        inside.append({})
        current.append(inside[-1])

    def leave(block: nn.Module, given: Any, output: Any) -> None:
        current.pop()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        current[-1][_key(tensor)] = tensor.untyped_storage()
        return tensor.detach()  # a result that is kept as it is would hold its own graph for ever

    wholes = [module, *carriers(module)]
    blocks = [block for whole in wholes for block in whole.modules() if isinstance(block, Block)]
    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            work()
    finally:
        for hook in hooks:
            hook.remove()
    own = {_key(tensor) for whole in wholes for tensor in (*whole.parameters(), *whole.buffers())}
    everything, held = dict(outside), inputs | outside
    for part in inside:
        everything |= part
    largest = max((_bytes(part, own | held.keys()) for part in inside), default=0)
    return _bytes(everything, own), _bytes(held, own) + largest


class Peak(TorchDispatchMode):
    """Counts tensors that are made within: bytes alive `now`, and the `most` there were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.now = 0
        self._alive: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: what is counted is not compiled. torch would import its compiler, 1.3 s, to skip it."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {_key(tensor) for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in known:  # no view
                self._add(_key(tensor), tensor.untyped_storage())
        return found

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(storages: Storages, without: set[int]) -> int:
    return sum(storage.nbytes() for key, storage in storages.items() if key not in without)
