"""What a training learnt and how far it is, as tensors by name; and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dmd.config.method import STUDENT
from dmd.config.training import Adapter
from dmd.models.adapters import Adapted
from dmd.models.lora import merged, original, scale
from dmd.train import sharding
from dmd.train.trainer import Trainer


def student_weights(trainer: Trainer, adapter: Adapter | None) -> dict[str, Tensor]:
    """Raw and averaged weights of the student, `raw.*` and `ema.*`; of an adapter `lora.*` besides.

    Those with an adapter are those of the network with the adapter added; `lora.*` is the averaged adapter. Averages of
    earlier phases that are kept are `ema@{number of calls}.*`. All are on the CPU.
    """
    network = getattr(trainer.networks[STUDENT], "network", trainer.networks[STUDENT])
    average = _whole(trainer.networks.average.module)
    averages = {"ema": average, **{f"ema@{calls}": weights for calls, weights in trainer.kept.items()}}
    if not isinstance(network, Adapted) or adapter is None:
        return _all_named({"raw": _whole(network), **averages})
    begun = original(_whole(network.carrier))
    factor = scale(adapter.model_dump())  # type: ignore[arg-type]
    learnt = {"raw": _whole(network.adapter), **averages}
    whole = {name: merged(begun, weights, scale=factor) for name, weights in learnt.items()}
    return _all_named({**whole, "lora": average})


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that an update changes; of networks with adapters these alone."""
    found: dict[str, Tensor] = {}
    for name, module in trainer.networks.kept().items():
        found |= _named(name, _whole(module))
    for role, optimiser in trainer.networks.optimisers.items():
        found |= _named(f"optimiser.{role}", optimiser.tensors())
    found |= _all_named({f"kept.{calls}": weights for calls, weights in trainer.kept.items()})
    return found | {f"buffer.{name}": value.cpu() for name, value in trainer.method.buffers.items()}


def restore(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Sets a training to what `state` returned.

    Raises:
        ValueError: `state` of this training returns other names, shapes or dtypes; it may be set in part then.
    """
    modules = {f"{name}.": module for name, module in trainer.networks.kept().items()}
    optimisers = {f"optimiser.{role}.": optimiser for role, optimiser in trainer.networks.optimisers.items()}
    if odd := sorted(name for name in tensors if not name.startswith((*modules, *optimisers, "buffer.", "kept."))):
        raise ValueError(f"{odd[0]} is unknown, with {len(odd) - 1} other names")
    for prefix, module in modules.items():
        sharding.load(module, part(prefix, tensors))
    for prefix, optimiser in optimisers.items():
        optimiser.restore(part(prefix, tensors))
    buffers, found = trainer.method.buffers, part("buffer.", tensors)
    if odd := sorted(buffers.keys() ^ found.keys()):
        raise ValueError(f"buffer.{odd[0]} is {'missing' if odd[0] in buffers else 'unknown'}")
    for name, value in found.items():
        sharding.check_like(f"buffer.{name}", value, buffers[name])
        buffers[name].copy_(value)
    trainer.kept = _kept(trainer, part("kept.", tensors))


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _kept(trainer: Trainer, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Kept averages by number of calls, of tensors `{calls}.{name}`; ValueError if one is no average of the student."""
    like = trainer.networks.average.module.state_dict()
    found = {calls: part(f"{calls}.", tensors) for calls in dict.fromkeys(name.partition(".")[0] for name in tensors)}
    for calls, weights in found.items():
        if odd := sorted(weights.keys() ^ like.keys()):
            raise ValueError(f"kept.{calls}.{odd[0]} is {'missing' if odd[0] in like else 'unknown'}")
        for name, value in weights.items():
            sharding.check_like(f"kept.{calls}.{name}", value, like[name])
    return found


def _whole(module: nn.Module) -> dict[str, Tensor]:
    return {name: sharding.gathered(value) for name, value in module.state_dict().items()}


def _named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in tensors.items()}


def _all_named(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, tensors in sets.items() for key, value in tensors.items()}
