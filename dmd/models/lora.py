"""Arithmetic of LoRA (Hu et al. 2021): which layers get an adapter, how large it is, and what it adds to weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor, nn


class Adapter(TypedDict):
    """Section `distill.adapter`.

    Attributes:
        rank: of the product B A that is added to a weight.
        alpha: the product counts alpha / rank; None is the rank.
        targets: last parts of the names of layers, Linear or Conv2d, that get one; None is all of them.
    """

    rank: int
    alpha: float | None
    targets: list[str] | None


def targets(network: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """Layers by name that get an adapter: those whose name is, or ends with, one that is wanted; None wants all.

    Raises:
        ValueError: a wanted name is no layer's, or that of a layer which cannot have one.
    """
    plain = {name: layer for name, layer in network.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    fit = {name: layer for name, layer in plain.items() if getattr(layer, "groups", 1) == 1}
    if wanted is None:
        return fit
    for one in wanted:
        if not any(_ends(name, one) for name in fit):
            known = sorted({name.rpartition(".")[2] for name in fit})
            raise ValueError(f"adapter.targets: no Linear or Conv2d is called {one!r}; last parts are {known}")
    return {name: layer for name, layer in fit.items() if any(_ends(name, one) for one in wanted)}


class Size(NamedTuple):
    """Numbers of parameters that are trained, and of the layers that they belong to."""

    parameters: int
    layers: int


def size(network: nn.Module, adapter: Adapter) -> Size:
    """What an adapter of this network would have, before it is made; the network may be without memory."""
    weights = [layer.get_parameter("weight") for layer in targets(network, adapter["targets"]).values()]
    return Size(sum(adapter["rank"] * (len(weight) + weight[0].numel()) for weight in weights), len(weights))


def scale(adapter: Adapter) -> float:
    """What the product B A counts: alpha / rank."""
    return (adapter["alpha"] or adapter["rank"]) / adapter["rank"]


def original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network that carries adapters, under the names they had before."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in state.items()
        if ".lora_A." not in name and ".lora_B." not in name
    }


def merged(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Weights of a network with an adapter added: W + scale B A, the sum taken in float64.

    Args:
        state: of the network, without adapters.
        weights: `{layer}.lora_A.weight` (rank, in) or (rank, in, h, w), `{layer}.lora_B.weight` (out, rank, ...).
        scale: alpha / rank, times how much of it is wanted.

    Raises:
        ValueError: an adapter of a layer that is not there, or of another shape.
    """
    found = {name: value.clone() for name, value in state.items()}
    for name, down in weights.items():
        layer, part, _ = name.rsplit(".", 2)
        if part != "lora_A":
            continue
        up, weight = weights[f"{layer}.lora_B.weight"], found.get(f"{layer}.weight")
        rows = 0 if weight is None else weight[0].numel()
        if weight is None or up.flatten(1).shape != (len(weight), len(down)) or down[0].numel() != rows:
            there = "is not there" if weight is None else f"has weights {tuple(weight.shape)}"
            raise ValueError(f"adapter of {layer}: {tuple(up.shape)} times {tuple(down.shape)}, but the layer {there}")
        product = up.flatten(1).double() @ down.flatten(1).double()
        found[f"{layer}.weight"] = (weight.double() + scale * product.view(weight.shape)).to(weight.dtype)
    return found


def _ends(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")
