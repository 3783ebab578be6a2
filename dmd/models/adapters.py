"""Adapters (LoRA, through peft): one frozen network that carries several, and is itself without them."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models.lora import Adapter, original, targets

FACTS = ("channels", "resolution", "num_classes", "text_width")  # what networks say of their inputs


class Adapted(nn.Module):
    """A network with one of the adapters that it carries, or none.

    Parameters, state and device of this module are those of the adapter; the network belongs to nobody.

    Attributes:
        adapter: modules `{layer}.lora_A` and `{layer}.lora_B`, one below the other as in the network.
    """

    def __init__(self, network: nn.Module, switch: Switch, name: str | None) -> None:
        """name: of the adapter; None is the network alone."""
        super().__init__()
        self._carrier, self._switch, self._name = (network,), switch, name  # in a tuple: no submodule
        self.adapter = nn.Module()
        for place, layer in switch.layers.items() if name else ():
            for part in ("lora_A", "lora_B"):
                _place(self.adapter, f"{place}.{part}", getattr(layer, part)[name])

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """As the network's."""
        self._switch.choose(self._name)
        return self.carrier(image, noise_condition, label)

    def __getattr__(self, name: str) -> Any:
        """The network's own, of `FACTS`."""
        return getattr(self.carrier, name) if name in FACTS else super().__getattr__(name)

    @property
    def carrier(self) -> Any:
        """The network."""
        return self._carrier[0]

    def compile(self, *given: Any, **more: Any) -> None:
        """Compiles the network; which adapter it applies is among what its variants are told apart by."""
        self.carrier.compile(*given, **more)

    @property
    def frozen(self) -> list[Tensor]:
        """The network's own weights, which every adapter shares; they count as those of the network without adapter."""
        named = {**dict(self.carrier.named_parameters()), **dict(self.carrier.named_buffers())}
        return [] if self._name else list(original(named).values())

    @property
    def checkpointing(self) -> bool:
        """The network's."""
        return self.carrier.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.carrier.checkpointing = value


class Switch:
    """Which adapter the layers of a network apply now, whichever pass they are in."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        """layers: peft's, by place in the network; they apply none from now on."""
        self.layers = layers
        self._apply(None)

    def choose(self, name: str | None) -> None:
        """Applies one adapter from now on, or none.

        peft's own set_adapter would freeze the others as well: an adapter whose backward pass is still to come would
        then get no gradient.
        """
        if name != self._name:
            self._apply(name)

    def contexts(self) -> tuple[Any, Any]:
        """For a block that is computed again later: with the adapter of now."""
        return contextlib.nullcontext(), self._at(self._name)

    @contextlib.contextmanager
    def _at(self, name: str | None) -> Iterator[None]:
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


def carried(network: nn.Module, adapter: Adapter, names: Sequence[str], *, seed: int) -> list[Adapted]:
    """The network alone, then with each of the named new adapters. It is changed in place and frozen.

    An adapter begins as nothing: B is zero, A is drawn (Kaiming, uniform) on the CPU from `seed`.

    Raises:
        ValueError: no layer is a target, or one is no plain Linear or Conv2d.
    """
    torchvision_operators.ensure()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    places = list(targets(network, adapter["targets"]))
    network.requires_grad_(False)
    alpha = adapter["alpha"] or adapter["rank"]
    config = LoraConfig(r=adapter["rank"], lora_alpha=alpha, target_modules=places)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # there are two adapters on purpose
        torch.manual_seed(seed)
        for name in names:
            inject_adapter_in_model(config, network, adapter_name=name)
    layers = {place: layer for place, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        layer.cast_input_dtype_enabled = False  # autocast does: peft would keep float32 copies of inputs
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(True)
    switch = Switch(layers)
    network.contexts = switch.contexts  # type: ignore[assignment]
    return [Adapted(network, switch, name) for name in (None, *names)]


def trained(network: nn.Module) -> nn.Module:
    """What is trained of a network: its adapter, or all of it."""
    return network.adapter if isinstance(network, Adapted) else network


def with_network(denoiser: Any, network: nn.Module) -> Any:
    """A denoiser that differs in its network alone."""
    other = copy.copy(denoiser)
    other._modules = {**denoiser._modules, "network": network}
    return other


def _place(tree: nn.Module, path: str, part: nn.Module) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        if folder not in tree._modules:
            tree.add_module(folder, nn.Module())
        tree = tree.get_submodule(folder)
    tree.add_module(last, part)
