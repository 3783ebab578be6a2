"""Adapters (LoRA, with peft): one frozen network carries several and runs with any one of them, or without."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models.lora import Adapter, base_weights, targets

FORWARDED = (  # attributes that `Adapted` takes from its network
    *("channels", "resolution", "num_classes", "text_width"),
    *("second_time", "guidance_input"),
)


class Adapted(nn.Module):
    """A network with one of the adapters that it carries, or without.

    Parameters, state and device of this module are those of the adapter; the network is not a submodule.

    Attributes:
        adapter: modules `{layer}.lora_A` and `{layer}.lora_B`, nested as in the network.
    """

    def __init__(self, network: nn.Module, switch: Switch, name: str | None) -> None:
        """name: of the adapter; None is the network without adapter."""
        super().__init__()
        self._carrier, self._switch, self._name = (network,), switch, name  # a tuple hides it from nn.Module
        self.adapter = nn.Module()
        for path, layer in switch.layers.items() if name else ():
            for part in ("lora_A", "lora_B"):
                _add_module(self.adapter, f"{path}.{part}", getattr(layer, part)[name])

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """The network with this adapter."""
        self._switch.choose(self._name)
        return self.carrier(image, noise_condition, label)

    def bottleneck(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """The network's bottleneck with this adapter."""
        self._switch.choose(self._name)
        features: Tensor = self.carrier.bottleneck(image, noise_condition, label)
        return features

    def __getattr__(self, name: str) -> Any:
        """Attributes in `FORWARDED` are the network's."""
        return getattr(self.carrier, name) if name in FORWARDED else super().__getattr__(name)

    @property
    def carrier(self) -> Any:
        """The network."""
        return self._carrier[0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network, one variant per adapter."""
        self.carrier.compile(*args, **kwargs)

    @property
    def frozen(self) -> list[Tensor]:
        """The base weights; [] with an adapter, since all share them and they are to be counted only once."""
        tensors = {**dict(self.carrier.named_parameters()), **dict(self.carrier.named_buffers())}
        return [] if self._name else list(base_weights(tensors).values())


class Switch:
    """Chooses the adapter that all layers of a network apply."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        """layers: peft's layers by path in the network; they apply no adapter at first."""
        self.layers = layers
        self._apply(None)

    def choose(self, name: str | None) -> None:
        """Applies one adapter from now on, or none.

        peft's set_adapter would also freeze the others, so that an adapter whose backward pass is still to come would
        get no gradient.
        """
        if name != self._name:
            self._apply(name)

    def contexts(self) -> tuple[Any, Any]:
        """`context_fn` of checkpointed blocks: their recomputation uses the adapter that is chosen in this pass."""
        return contextlib.nullcontext(), self._chosen(self._name)

    @contextlib.contextmanager
    def _chosen(self, name: str | None) -> Iterator[None]:
        before = self._name
        self.choose(name)
        try:
            yield
        finally:
            self.choose(before)

    def _apply(self, name: str | None) -> None:
        for layer in self.layers.values():
            layer._active_adapter = [name] if name else []
        self._name = name


def add_adapters(network: nn.Module, adapter: Adapter, names: Sequence[str], *, seed: int) -> list[Adapted]:
    """Adds new adapters to a network, which is changed in place and frozen.

    A new adapter changes nothing: B is zero, A is drawn (Kaiming, uniform) on the CPU from `seed`.

    Returns:
        The network without adapter, then with each of the named adapters.

    Raises:
        ValueError: no layer is a target, or a target is no plain Linear or Conv2d.
    """
    torchvision_operators.ensure()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    paths = list(targets(network, adapter["targets"]))
    network.requires_grad_(False)
    alpha = adapter["alpha"] or adapter["rank"]
    config = LoraConfig(r=adapter["rank"], lora_alpha=alpha, target_modules=paths)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        torch.manual_seed(seed)
        for name in names:
            inject_adapter_in_model(config, network, adapter_name=name)
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        layer.cast_input_dtype_enabled = False  # autocast casts; peft would keep float32 copies of inputs
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(True)
    switch = Switch(layers)
    network.contexts = switch.contexts  # type: ignore[assignment]
    return [Adapted(network, switch, name) for name in (None, *names)]


def trained_part(network: nn.Module) -> nn.Module:
    """The part of a network that is trained: its adapter, or all of it."""
    return network.adapter if isinstance(network, Adapted) else network


def with_network(denoiser: Any, network: nn.Module) -> Any:
    """The same denoiser with another network."""
    other = copy.copy(denoiser)
    other._modules = {**denoiser._modules, "network": network}
    return other


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)
