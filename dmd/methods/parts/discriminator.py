"""The GAN loss of DMD2 (Yin et al. 2024, arXiv 2405.14867, Section 4.3).

A small head on the bottleneck of the fake denoiser tells real images from generated ones, both with noise of a level
drawn from all levels (Wang et al. 2023, arXiv 2206.02262). With the logit l of an image,

    head and fake denoiser   softplus(-l(real)) + softplus(l(generated)) + r1/2 |d l(real) / d real|^2
    student                  softplus(-l(generated)).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmd.methods.base import StepLog
from dmd.methods.parts.level_table import Noised
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build


class Head(nn.Module):
    """Logits of features (B, F, r, r): convolutions halve r down to at most 4, then one spans what is left.

    For the released networks (F = 768, r = 8) these are the layers of Yin et al. 2024.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > 4:
            layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), _norm(channels), nn.SiLU()]
            side //= 2
        layers += [nn.Conv2d(channels, channels, side), _norm(channels), nn.SiLU(), nn.Conv2d(channels, 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,), positive for real images."""
        logits: Tensor = self.layers(features).flatten()
        return logits


def _norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, as in the paper, of at least 4 channels: a single value would be normalised to a constant."""
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def new_head(network: Mapping[str, object] | None) -> Head:
    """The head for a network of this architecture, its weights drawn from torch's global generator.

    Raises:
        ValueError: the denoiser is no network, or the network has no bottleneck.
    """
    if network is None:
        raise ValueError("distill.method.adversarial: it needs a denoiser that is a network")
    with torch.device("meta"):
        shape = build(network).bottleneck_shape
    return Head(*shape)  # type: ignore[misc]


def logits(head: nn.Module, fake: Denoiser, noised: Noised, label: Tensor) -> Tensor:
    """Logits (B,) of images with noise; gradients pass through the encoder of the fake denoiser."""
    found: Tensor = head(fake.bottleneck(noised.image, noised.sigma, label))
    return found


def realistic(logits: Tensor) -> Tensor:
    """softplus(-l), the mean over images: small where images pass for real ones."""
    return functional.softplus(-logits).mean()


def generated(logits: Tensor) -> Tensor:
    """softplus(l), the mean over images: small where images are taken for generated ones."""
    return functional.softplus(logits).mean()


def loss_of_real_images(
    head: nn.Module, fake: Denoiser, noised: Noised, label: Tensor, *, r1: float, log: StepLog
) -> Tensor:
    """The head's loss on real images with noise, with R1 of weight `r1`."""
    noised.image.requires_grad_(r1 > 0)
    with twice_differentiable() if r1 else contextlib.nullcontext():
        found = logits(head, fake, noised, label)
    log.mean("gan/real", found.detach())
    loss = realistic(found)
    if r1:
        penalty = gradient_penalty(found, noised.image)
        log.scalar("gan/r1", penalty, len(found))
        loss = loss + r1 * penalty
    return loss


def twice_differentiable() -> AbstractContextManager[None]:
    """For passes whose gradient is differentiated, as R1's: torch's faster attention has no second derivative."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def gradient_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, arXiv 1801.04406): half the squared norm of d logit / d image, mean over images.

    Args:
        logits: of `image`, from a pass that was `twice_differentiable`.
    """
    (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return slope.square().flatten(1).sum(1).mean() / 2
