"""diffusers' autoencoders: images to latents of about unit variance, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models import outside_config, sizes

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

CLASSES = {"full": "AutoencoderKL", "tiny": "AutoencoderTiny"}


class Codec(nn.Module):
    """Images (B, 3, H, W) in about [-1, 1] to latents (B, channels, H / scale, W / scale) and back.

    Latents are scaled as the diffusion network takes them: `Codec` applies the autoencoder's scaling factor.

    Args:
        kind: "full" (AutoencoderKL) or "tiny" (AutoencoderTiny, which decodes the latents of a full one faster).
        config: arguments of that class; `dmd.models.outside_config` says which are refused.

    Attributes:
        channels: of latents.
        scale: pixels per latent pixel, along each side.
        dtype: of passes under autocast; parameters and results stay float32. None is float32 throughout.

    Raises:
        ValueError: another kind, arguments that are refused, unusable, or beyond `dmd.models.sizes`, or images
            without 3 channels.
    """

    dtype: torch.dtype | None = None

    def __init__(self, *, kind: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        import diffusers

        if kind not in CLASSES:
            raise ValueError(f"autoencoder kind {kind!r} is none of {', '.join(CLASSES)}")
        arguments = outside_config.arguments(f"autoencoder {kind}", config, CLASSES[kind])
        self.autoencoder: Any
        with sizes.making(CLASSES[kind], arguments):
            self.autoencoder = getattr(diffusers, CLASSES[kind])(**arguments)
        full = self.autoencoder.config
        if full["in_channels"] != 3 or full["out_channels"] != 3:
            raise ValueError(f"{CLASSES[kind]}: images of {full['in_channels']} channels: only 3 are supported")
        if not isinstance(full["scaling_factor"], (int, float)) or not full["scaling_factor"]:
            raise ValueError(f"{CLASSES[kind]}: scaling_factor {full['scaling_factor']!r} is no factor")
        levels = full["decoder_block_out_channels" if kind == "tiny" else "block_out_channels"]
        self.kind, self.channels, self.scale = kind, full["latent_channels"], 2 ** (len(levels) - 1)
        self._factor = full["scaling_factor"]

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass recomputes each block instead of saving its activations."""
        return self.autoencoder.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        (self.autoencoder.enable_gradient_checkpointing if value else self.autoencoder.disable_gradient_checkpointing)()

    def decode(self, latent: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W) of latents (B, channels, h, w), differentiable; ValueError for other channels."""
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise ValueError(f"latent: shape {tuple(latent.shape)} is not (B, {self.channels}, h, w)")
        with torch.autocast(latent.device.type, self.dtype, enabled=self.dtype is not None):
            return self.autoencoder.decode(latent / self._factor).sample.float()

    def reconstruct(self, image: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Images float32 decoded from latents with noise, and the normal distribution of the latents, float32.

        For a full autoencoder. Latents are not scaled: a training sets the factor when it ends.

        Args:
            image: (B, 3, H, W).
            noise: (B, channels, H / scale, W / scale), in standard deviations of the latents.
        """
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None):
            latent = self.autoencoder.encode(image).latent_dist
            latent = type(latent)(latent.parameters.float())
            decoded = self.autoencoder.decode(latent.mean + latent.std * noise).sample.float()
        return decoded, latent

    def encode(self, image: Tensor) -> Tensor:
        """Latents float32 (B, channels, h, w) of images (B, 3, H, W): the means, for a full autoencoder.

        Raises:
            ValueError: the sides are no multiples of `scale`, or the channels are not 3.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % self.scale or image.shape[3] % self.scale:
            raise ValueError(f"image: shape {tuple(image.shape)} is not (B, 3, H, W) in multiples of {self.scale}")
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None):
            output = self.autoencoder.encode(image)
            latent = output.latents if self.kind == "tiny" else output.latent_dist.mode()
        return latent.float() * self._factor
