"""Weights, gradients and moments that are spread over processes (FSDP2): one part each, whole where a layer works."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, distributed, nn

from dmd.models.counting import carriers

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(networks: Iterable[nn.Module]) -> None:
    """Spreads the parameters of networks over all processes, in place; gradients add up as they are spread.

    Of a network with adapters the one that carries them is spread, once. Blocks are gathered one at a time: the modules
    of the outermost lists and mappings of a network.

    Raises:
        ValueError: there is one process only.
    """
    if not distributed.is_initialized():
        raise ValueError("compute.shard_parameters: one process has nobody to share with; set distill.processes")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    wholes = {id(whole): whole for network in networks for whole in carriers(network) or [network]}
    device = next(next(iter(wholes.values())).parameters()).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for whole in wholes.values():
        for block in (*_blocks(whole), whole):
            fully_shard(block, mesh=mesh)
        for module in whole.modules():
            if isinstance(module, FSDPModule):  # losses count each image by its part of the whole batch
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


def is_spread(value: Tensor) -> TypeGuard[DTensor]:
    """Whether a process holds only its part of a tensor. Until `shard` imports what spreads them, none is."""
    module = sys.modules.get("torch.distributed.tensor")  # to import it takes a second: sympy
    return module is not None and isinstance(value, module.DTensor)


def gathered(value: Tensor) -> Tensor:
    """The whole of a tensor that may be spread, on the CPU; all processes have to call this together.

    One tensor at a time is whole on their devices.
    """
    return (value.full_tensor() if is_spread(value) else value).cpu()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as `like` is; each process keeps its part of its own copy."""
    if not is_spread(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Sets weights and buffers, spread or not.

    Raises:
        ValueError: `tensors` are not those of the module by name, shape and dtype; nothing was set.
    """
    found = module.state_dict()
    if odd := sorted(found.keys() ^ tensors.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in found else 'unknown'}, with {len(odd) - 1} other names")
    for name, value in found.items():
        check_like(name, tensors[name], value)
    for name, value in found.items():
        value.copy_(placed(tensors[name], value))


def check_like(name: str, value: Tensor, like: Tensor) -> None:
    """ValueError unless a whole tensor has the shape and dtype of one that may be spread."""
    if value.shape != like.shape or value.dtype != like.dtype:
        given, wanted = ((tuple(each.shape), str(each.dtype).removeprefix("torch.")) for each in (value, like))
        raise ValueError(f"{name} is {given[1]} {given[0]}, not {wanted[1]} {wanted[0]}")


def _blocks(network: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += [block for block in child.children() if any(True for _ in block.parameters())]
        else:
            found += _blocks(child)
    return found
