"""LoRA (Hu et al. 2021): the layers that get an adapter, its size, and the sum of weights and adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor, nn


class Adapter(TypedDict):
    """Section `distill.adapter`.

    Attributes:
        rank: of the product B A that is added to a weight.
        alpha: the product is multiplied by alpha / rank; None is the rank.
        targets: layers (Linear or Conv2d) that get one, by the last parts of their names; None is all of them.
    """

    rank: int
    alpha: float | None
    targets: list[str] | None


def targets(network: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Layers by name that get an adapter: those whose name is, or ends with, one of `names`; None is all layers.

    Raises:
        ValueError: one of `names` fits no layer that can have an adapter.
    """
    plain = {name: layer for name, layer in network.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    possible = {name: layer for name, layer in plain.items() if getattr(layer, "groups", 1) == 1}
    if names is None:
        return possible
    for suffix in names:
        if not any(_ends(name, suffix) for name in possible):
            known = sorted({name.rpartition(".")[2] for name in possible})
            raise ValueError(f"adapter.targets: no Linear or Conv2d is called {suffix!r}; last parts are {known}")
    return {name: layer for name, layer in possible.items() if any(_ends(name, suffix) for suffix in names)}


class Size(NamedTuple):
    """Number of trained parameters, and of the layers that they belong to."""

    parameters: int
    layers: int


def size(network: nn.Module, adapter: Adapter) -> Size:
    """Size of a new adapter of this network, which may be on the meta device."""
    weights = [layer.get_parameter("weight") for layer in targets(network, adapter["targets"]).values()]
    return Size(sum(adapter["rank"] * (len(weight) + weight[0].numel()) for weight in weights), len(weights))


def scale(adapter: Adapter) -> float:
    """Factor on the product B A: alpha / rank."""
    return (adapter["alpha"] or adapter["rank"]) / adapter["rank"]


def base_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network that carries adapters, under their names without adapters."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in state.items()
        if ".lora_A." not in name and ".lora_B." not in name
    }


def merge_adapter(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Weights of a network with an adapter added: W + scale B A, the sum taken in float64.

    Args:
        state: of the network, without adapters.
        weights: `{layer}.lora_A.weight` (rank, in) or (rank, in, h, w), `{layer}.lora_B.weight` (out, rank, ...).
        scale: alpha / rank, times the strength of the adapter.

    Raises:
        ValueError: a layer of the adapter is missing from the network, or has another shape.
    """
    sums = {name: value.clone() for name, value in state.items()}
    for name, down in weights.items():
        layer, part, _ = name.rsplit(".", 2)
        if part != "lora_A":
            continue
        up, weight = weights[f"{layer}.lora_B.weight"], sums.get(f"{layer}.weight")
        rows = 0 if weight is None else weight[0].numel()
        if weight is None or up.flatten(1).shape != (len(weight), len(down)) or down[0].numel() != rows:
            problem = "is missing" if weight is None else f"has weights {tuple(weight.shape)}"
            raise ValueError(f"adapter of {layer}: {tuple(up.shape)} x {tuple(down.shape)}, but the layer {problem}")
        product = up.flatten(1).double() @ down.flatten(1).double()
        sums[f"{layer}.weight"] = (weight.double() + scale * product.view(weight.shape)).to(weight.dtype)
    return sums


def _ends(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")
