"""Bytes of tensors: those that autograd saves for a backward pass, and the most that are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmd.models.adapters import Adapted

Storages = dict[int, torch.UntypedStorage]


@dataclass(frozen=True)
class LinearBytes:
    """Bytes as a function of rows: `per_row`, plus `fixed` (such as weights cast to bfloat16)."""

    per_row: int
    fixed: int

    def of(self, num: int) -> int:
        """Bytes of `num` rows."""
        return self.fixed + num * self.per_row


def weight_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers; of an `Adapted` those of its adapter, or of the base weights if it has none."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for part in module.modules() if isinstance(part, Adapted) for value in part.frozen]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def carriers(module: nn.Module) -> list[nn.Module]:
    """Networks that carry the adapters in a module; they are not submodules of it."""
    return [part.carrier for part in module.modules() if isinstance(part, Adapted)]


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes alive at once of tensors that `work` makes, without the working memory of kernels."""
    with Peak() as peak:
        work()
    return peak.most


def saved_bytes(module: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that a forward pass `work` through a module saves for its backward pass, without its weights."""
    saved: Storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[_key(tensor)] = tensor.untyped_storage()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    weights = {_key(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


class Peak(TorchDispatchMode):
    """Counts bytes of tensors made inside the context: alive `now`, and the `most` at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.now = 0
        self._alive: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing in here is compiled, and torch would import its compiler (1.3 s) to skip it."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((result,)):
            key = _key(tensor)
            if key not in self._alive and all(key != _key(given) for given in _tensors(args)):  # not a view
                self._add(key, tensor.untyped_storage())
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """Tensors among arguments or results of an operator; some stand in a list."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
