"""Weights, gradients and moments sharded over processes (FSDP2); a block gathers its weights while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, distributed, nn

from dmd.models.tensor_bytes import carriers

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(networks: Iterable[nn.Module]) -> None:
    """Shards the parameters of networks over all processes, in place; gradients are summed over processes.

    A base network that several networks share through adapters is sharded once. One block at a time is gathered; blocks
    are the modules in a network's outermost ModuleLists and ModuleDicts.

    Raises:
        ValueError: there is only one process.
    """
    if not distributed.is_initialized():
        raise ValueError("compute.shard_parameters: it needs several processes: set `processes` of the same section")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    by_id = {id(base): base for network in networks for base in carriers(network) or [network]}
    device = next(next(iter(by_id.values())).parameters()).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for base in by_id.values():
        for block in (*_blocks(base), base):
            fully_shard(block, mesh=mesh)
        for module in base.modules():
            if isinstance(module, FSDPModule):  # sum, not mean: losses are already divided by the whole batch
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


def is_sharded(value: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a shard of a tensor. Before `shard` imports DTensor, none is sharded."""
    module = sys.modules.get("torch.distributed.tensor")  # its import takes a second (sympy)
    return module is not None and isinstance(value, module.DTensor)


def gather(value: Tensor) -> Tensor:
    """The full tensor, on the CPU, of one that may be sharded; all processes must call this together.

    Meanwhile each device holds this tensor in full, and no other one.
    """
    return (value.full_tensor() if is_sharded(value) else value).cpu()


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shards a full tensor as `like` is sharded; each process takes its shard from its own full copy."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Sets weights and buffers, sharded or not.

    Raises:
        ValueError: names, shapes or dtypes of `tensors` differ from the module's; then nothing is set.
    """
    state = module.state_dict()
    if odd := sorted(state.keys() ^ tensors.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in state else 'unknown'}, with {len(odd) - 1} other names")
    for name, value in state.items():
        check_like(name, tensors[name], value)
    for name, value in state.items():
        value.copy_(shard_like(tensors[name], value))


def check_like(name: str, value: Tensor, like: Tensor) -> None:
    """ValueError unless a full tensor has the shape and dtype of `like`, which may be sharded."""
    if value.shape != like.shape or value.dtype != like.dtype:
        actual, expected = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (value, like))
        raise ValueError(f"{name} is {actual}, not {expected}")


def _blocks(network: nn.Module) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            blocks += [block for block in child.children() if any(True for _ in block.parameters())]
        else:
            blocks += _blocks(child)
    return blocks
