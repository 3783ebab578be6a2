"""The state of a training as tensors by name, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dmd.config.method_base import STUDENT
from dmd.config.training import Adapter
from dmd.models.adapters import Adapted
from dmd.models.lora import base_weights, merge_adapter, scale
from dmd.provenance import tensor_files
from dmd.train import sharding
from dmd.train.trainer import Trainer


def student_weights(
    trainer: Trainer, adapter: Adapter | None, best: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of the student for its file, on the CPU: `raw.*`, the moving average `ema.*`, and `best.*` if given.

    `ema@{number of calls}.*` are moving averages at the end of earlier phases. If the student is an adapter, these are
    the weights of the base network with the adapter merged; `lora.*` is the averaged adapter, `lora_best.*` the best.
    """
    network = getattr(trainer.networks[STUDENT], "network", trainer.networks[STUDENT])
    average = _gather_state(trainer.networks.average.module)
    averages = {"ema": average, **{f"ema@{calls}": weights for calls, weights in trainer.earlier.items()}}
    averages |= {"best": dict(best)} if best else {}
    if not isinstance(network, Adapted) or adapter is None:
        return _prefixed({"raw": _gather_state(network), **averages})
    base = base_weights(_gather_state(network.carrier))
    factor = scale(adapter.model_dump())  # type: ignore[arg-type]
    adapters = {"raw": _gather_state(network.adapter), **averages}
    networks = {name: merge_adapter(base, weights, scale=factor) for name, weights in adapters.items()}
    return _prefixed({**networks, "lora": average, **({"lora_best": best} if best else {})})


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that an update changes, on the CPU; of a network with an adapter only the adapter."""
    sets = {name: _gather_state(module) for name, module in trainer.networks.checkpointed().items()}
    sets |= {f"optimiser.{role}": optimiser.tensors() for role, optimiser in trainer.networks.optimisers.items()}
    sets |= {f"kept.{calls}": weights for calls, weights in trainer.earlier.items()}
    return _prefixed(sets) | {f"buffer.{name}": value.cpu() for name, value in trainer.method.buffers.items()}


def restore(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Sets a training to what `state` returned.

    Raises:
        ValueError: names, shapes or dtypes differ from those of `state(trainer)`; some tensors may already be set.
    """
    modules = {f"{name}.": module for name, module in trainer.networks.checkpointed().items()}
    optimisers = {f"optimiser.{role}.": optimiser for role, optimiser in trainer.networks.optimisers.items()}
    if odd := sorted(name for name in tensors if not name.startswith((*modules, *optimisers, "buffer.", "kept."))):
        raise ValueError(f"{odd[0]} is unknown, with {len(odd) - 1} other names")
    for prefix, module in modules.items():
        sharding.load(module, tensor_files.part(prefix, tensors))
    for prefix, optimiser in optimisers.items():
        optimiser.restore(tensor_files.part(prefix, tensors))
    buffers, values = trainer.method.buffers, tensor_files.part("buffer.", tensors)
    if odd := sorted(buffers.keys() ^ values.keys()):
        raise ValueError(f"buffer.{odd[0]} is {'missing' if odd[0] in buffers else 'unknown'}")
    for name, value in values.items():
        sharding.check_like(f"buffer.{name}", value, buffers[name])
        buffers[name].copy_(value)
    trainer.earlier = _earlier(trainer, tensor_files.part("kept.", tensors))


def _earlier(trainer: Trainer, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`Trainer.earlier` from tensors `{calls}.{name}`; ValueError if they do not fit the student."""
    like = trainer.networks.average.module.state_dict()
    numbers = dict.fromkeys(name.partition(".")[0] for name in tensors)
    averages = {calls: tensor_files.part(f"{calls}.", tensors) for calls in numbers}
    for calls, weights in averages.items():
        check_weights(f"kept.{calls}", weights, like)
    return averages


def check_weights(prefix: str, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """ValueError unless these are full tensors with the names, shapes and dtypes of `like`, which may be sharded."""
    if odd := sorted(weights.keys() ^ like.keys()):
        raise ValueError(f"{prefix}.{odd[0]} is {'missing' if odd[0] in like else 'unknown'}")
    for name, value in weights.items():
        sharding.check_like(f"{prefix}.{name}", value, like[name])


def _gather_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: sharding.gather(value) for name, value in module.state_dict().items()}


def _prefixed(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, tensors in sets.items() for key, value in tensors.items()}
