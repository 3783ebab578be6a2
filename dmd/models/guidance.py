"""Classifier-free guidance (Ho and Salimans 2022) as a denoiser like any other."""

import torch
from torch import nn

from dmd.models.denoiser import Denoiser


class Guided(nn.Module):
    """A network that answers F_u + w (F_c - F_u), of one call on the doubled batch, the unconditional half first.

    Args:
        network: F_theta(image, condition, label); its weights are shared.
        empty: what stands for no condition: text states (L, E), or a class ().
        guidance: w.
    """

    empty: torch.Tensor

    def __init__(self, network: nn.Module, empty: torch.Tensor, guidance: float) -> None:
        super().__init__()
        self.network, self.guidance = network, guidance
        self.register_buffer("empty", empty.detach().to(_device(network)), persistent=False)

    @property
    def checkpointing(self) -> bool:
        """That of the network within."""
        return bool(self.network.checkpointing)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.network.checkpointing = value  # type: ignore[assignment]

    def forward(self, image: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """As the network; ValueError if the label is of another shape than `empty`."""
        if label.shape[1:] != self.empty.shape:
            raise ValueError(f"label: {tuple(label.shape[1:])} a sample, but empty has shape {tuple(self.empty.shape)}")
        labels = torch.cat([self.empty.to(label.dtype).expand_as(label), label])
        out = self.network(torch.cat([image, image]), torch.cat([condition, condition]), labels)
        # bfloat16 would round the difference once more, w times as large
        without, given = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2)
        return without + self.guidance * (given - without)


def guided(denoiser: Denoiser, empty: torch.Tensor, guidance: float) -> Denoiser:
    """The denoiser under guidance w; weights, preconditioning, dtype and scheduler are its own.

    Args:
        denoiser: conditional, on its device.
        empty: what stands for no condition, text states (L, E) of the empty prompt.
        guidance: w; 1 is no guidance and returns `denoiser` itself.

    Raises:
        ValueError: w below 1, which would lead away from the condition.
    """
    if not 1 <= guidance < float("inf"):
        raise ValueError(f"guidance {guidance:g} is not 1 (none) or more")
    if guidance == 1:
        return denoiser
    found = Denoiser(Guided(denoiser.network, empty, guidance), sigma_data=denoiser.sigma_data)
    found.preconditioning = denoiser.preconditioning
    found.dtype, found.scheduler = denoiser.dtype, denoiser.scheduler
    return found.train(denoiser.training)


def _device(network: nn.Module) -> torch.device | None:
    return next((value.device for value in (*network.parameters(), *getattr(network, "frozen", ()))), None)
