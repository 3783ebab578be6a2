"""Training of an autoencoder with a normal latent (Kingma and Welling 2013, arXiv 1312.6114, Eq. 10).

mean |x - D(mu + s n)| + kl_weight KL(N(mu, s^2) || N(0, 1)) / (C H W), with mu and s of the encoder, and the decoder D.
The absolute error and a weight of about 1e-6 are those of Rombach et al. 2022 (arXiv 2112.10752, section 3.1 and
appendix G), without their perceptual and adversarial losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.methods import autoencoding as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.models.autoencoder import Codec


@dataclass
class Autoencoding(Method[sections.Autoencoding]):
    """Trains a `Codec`; as in every method, the trained network is called student."""

    @classmethod
    def steps(cls, config: sections.Autoencoding, clock: Clock) -> tuple[Step, ...]:
        """One step on one batch of images."""
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """The noise of the latents."""
        codec, (_, height, width) = self._codec(), self.facts.shape
        shape = (self.config.batch_size, codec.channels, height // codec.scale, width // codec.scale)
        return {"images": {"noise": torch.randn(shape, generator=random)}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Absolute error of the image decoded from a latent with noise, and the divergence of the latent's normal."""
        image = rows["image"]
        decoded, latent = self._codec().reconstruct(image, rows["noise"])
        error = (decoded - image).abs().mean()
        divergence = latent.kl().mean() / image[0].numel()
        log.scalar("loss/reconstruction", error, len(image))
        log.scalar("loss/divergence", divergence, len(image))
        log.spread("latent", latent.mean)
        return error + self.config.kl_weight * divergence

    def _codec(self) -> Codec:
        codec = self.networks["student"]
        assert isinstance(codec, Codec)
        return codec


METHOD = Autoencoding
