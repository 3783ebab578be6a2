"""Classifier-free guidance (Ho and Salimans 2022) as a network inside a denoiser."""

from typing import Any

import torch
from torch import nn

from dmd.models.adapters import with_network
from dmd.models.denoiser import Denoiser


class Guided(nn.Module):
    """F_u + w (F_c - F_u) of a network, by one call on a doubled batch, the unconditional half first.

    Args:
        network: F_theta(image, condition, label); its weights are shared.
        empty: the empty condition: text states (L, E), or a scalar label.
        guidance: w.
    """

    empty: torch.Tensor

    def __init__(self, network: nn.Module, empty: torch.Tensor, guidance: float) -> None:
        super().__init__()
        self.network, self.guidance = network, guidance
        self.register_buffer("empty", empty.detach().to(_device(network)), persistent=False)

    def forward(self, image: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The guided output, shaped like the network's; ValueError if the labels have another shape than `empty`."""
        out = self.network(torch.cat([image, image]), torch.cat([condition, condition]), self.with_empty(label))
        # in float32, since w multiplies the rounding error of the difference
        unconditional, conditional = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def with_empty(self, label: torch.Tensor) -> torch.Tensor:
        """As many empty conditions as labels, then the labels; ValueError as `forward`."""
        if label.shape[1:] != self.empty.shape:
            raise ValueError(f"label: shape {tuple(label.shape[1:])} a sample, not {tuple(self.empty.shape)} as empty")
        return torch.cat([self.empty.to(label.dtype).expand_as(label), label])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network, which is called without this module, too."""
        self.network.compile(*args, **kwargs)


def with_guidance(denoiser: Denoiser, empty: torch.Tensor, guidance: float) -> Denoiser:
    """A denoiser with guidance w, with the same weights, preconditioning, dtype and scheduler.

    Args:
        denoiser: conditional, on its device.
        empty: the empty condition: text states (L, E) of the empty prompt, or the scalar label -1.
        guidance: w; 1 is no guidance and returns `denoiser` itself.

    Raises:
        ValueError: w is below 1, which would weaken the condition, or not finite.
    """
    if not 1 <= guidance < float("inf"):
        raise ValueError(f"guidance {guidance:g} is not 1 (none) or more")
    if guidance == 1:
        return denoiser
    guided = Denoiser(Guided(denoiser.network, empty, guidance), sigma_data=denoiser.sigma_data)
    guided.preconditioning = denoiser.preconditioning
    guided.dtype, guided.scheduler = denoiser.dtype, denoiser.scheduler
    return guided.train(denoiser.training)


def unguided(denoiser: Denoiser) -> Denoiser:
    """The denoiser that `with_guidance` was given; one without guidance is returned itself."""
    guided = denoiser.network
    return with_network(denoiser, guided.network) if isinstance(guided, Guided) else denoiser


def both_conditions(
    denoiser: Denoiser, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 under the empty condition, and under the given one, by one call on a doubled batch.

    Args:
        denoiser: with guidance.
        image, sigma, label: as for `Denoiser.forward`.

    Raises:
        ValueError: the denoiser is without guidance, or the labels have another shape than the empty condition.
    """
    if not isinstance(guided := denoiser.network, Guided):
        raise ValueError("the denoiser has no guidance, and so no empty condition")
    labels = guided.with_empty(label)
    x0 = unguided(denoiser)(torch.cat([image, image]), torch.cat([sigma, sigma]), labels)
    unconditional, conditional = x0.chunk(2)
    return unconditional, conditional


def _device(network: nn.Module) -> torch.device | None:
    return next((value.device for value in (*network.parameters(), *getattr(network, "frozen", ()))), None)
