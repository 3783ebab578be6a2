"""A distance between latents: an image distance between their decoded images."""

import torch

from dmd.methods.base import Distance
from dmd.methods.parts.distances import Chunked
from dmd.models.autoencoder import Codec

CHUNKS = {"full": 1, "tiny": 4}  # latents decoded at once, by kind of codec: images of 512 pixels take gigabytes


class DecodedDistance(Chunked):
    """An image distance between decoded latents, such as LPIPS in Yin et al. 2023, appendix B.

    The gradient goes through the decoder to the generated latents; reference latents are decoded without gradient.

    Args:
        distance: of images (B, 3, H, W), mean over the batch.
        codec: frozen, on the device of the latents.
    """

    def __init__(self, distance: Distance, codec: Codec) -> None:
        super().__init__()
        self.distance, self.codec = distance, codec

    @property
    def chunk(self) -> int:
        """Number of latents decoded at a time."""
        return CHUNKS[self.codec.kind]

    def total(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Sum of the distances of some latents (B, C, h, w)."""
        with torch.no_grad():
            target = self.codec.decode(reference)
        return len(image) * self.distance(self.codec.decode(image), target)
