"""What a distillation learnt and how far it is, as tensors by name; and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dmd.methods import sharding
from dmd.methods.dmd import Distillation
from dmd.methods.optimiser import Optimiser
from dmd.networks.adapters import Adapted
from dmd.networks.lora import merged, original, scale


def generator_weights(distillation: Distillation) -> dict[str, Tensor]:
    """Raw and averaged weights of the generator, `raw.*` and `ema.*`; of an adapter `lora.*` besides.

    Those with an adapter are those of the network with the adapter added; `lora.*` is the averaged adapter. All are on
    the CPU.
    """
    network, adapter = distillation.generator.network, distillation.numbers.get("adapter")
    average = _whole(distillation.average.module)
    if not isinstance(network, Adapted) or adapter is None:
        return _named("raw", _whole(network)) | _named("ema", average)
    begun, learnt = original(_whole(network.carrier)), _whole(network.adapter)
    raw, ema = (merged(begun, weights, scale=scale(adapter)) for weights in (learnt, average))
    return _named("raw", raw) | _named("ema", ema) | _named("lora", average)


def state(distillation: Distillation) -> dict[str, Tensor]:
    """Everything that an update changes; of networks with adapters these alone."""
    found: dict[str, Tensor] = {}
    for name, module in _modules(distillation).items():
        found |= _named(f"network.{name}", _whole(module))
    for name, optimiser in _optimisers(distillation).items():
        found |= _named(f"optimiser.{name}", optimiser.tensors())
    return found


def restore(distillation: Distillation, tensors: Mapping[str, Tensor]) -> None:
    """Sets a distillation to what `state` returned.

    Raises:
        ValueError: `state` of this distillation returns other names, shapes or dtypes; it may be set in part then.
    """
    modules = {f"network.{name}.": module for name, module in _modules(distillation).items()}
    optimisers = {f"optimiser.{name}.": optimiser for name, optimiser in _optimisers(distillation).items()}
    if odd := sorted(name for name in tensors if not name.startswith((*modules, *optimisers))):
        raise ValueError(f"{odd[0]} is unknown, with {len(odd) - 1} other names")
    for prefix, module in modules.items():
        sharding.load(module, part(prefix, tensors))
    for prefix, optimiser in optimisers.items():
        optimiser.restore(part(prefix, tensors))


def _modules(distillation: Distillation) -> dict[str, nn.Module]:
    return {
        "generator": distillation.generator.network,
        "fake": distillation.fake.network,
        "average": distillation.average,
    }


def _optimisers(distillation: Distillation) -> dict[str, Optimiser]:
    return {"generator": distillation.generator_optimiser, "fake": distillation.fake_optimiser}


def _whole(module: nn.Module) -> dict[str, Tensor]:
    return {name: sharding.gathered(value) for name, value in module.state_dict().items()}


def _named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
