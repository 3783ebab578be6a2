"""The grid of images that shows the progress of a student."""

from collections.abc import Callable
from functools import partial

import torch

from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.sampling.noise import seeded_noise
from dmd.train.grids import decode_small
from dmd.train.trainer import Trainer

NUM = 64  # images in a grid


class Grid:
    """Draws images from fixed noise, to show the progress of a student.

    Compiled networks get padded batches of their training size, since they would be compiled again for another shape.
    """

    def __init__(
        self,
        trainer: Trainer,
        texts: Callable[[int], torch.Tensor] | None = None,
        small: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Prepares noise and conditions.

        Args:
            texts: num -> text states (num, L, E), if the condition is text.
            small: makes small images of latents, where no distance of the training has a decoder.
        """
        facts = trainer.method.facts
        compiled = trainer.training.compute.compile
        self._trainer = trainer
        self._size = trainer.pass_size() if compiled else trainer.split.micro_batch_size
        self._noise, balanced = seeded_noise(range(NUM), facts.shape, num_classes=facts.num_classes, labels="balanced")
        self._label = balanced if texts is None else texts(NUM)
        codecs = [
            distance.codec for distance in trainer.method.distances.values() if isinstance(distance, DecodedDistance)
        ]
        self._small = partial(decode_small, codec=codecs[0]) if codecs else small

    @torch.no_grad()
    def draw(self) -> torch.Tensor:
        """Images float32 (64, C, H, W); latents are decoded if the training has a decoder."""
        size = self._size or NUM
        indices = torch.arange(-(-NUM // size) * size) % NUM
        images = [self._draw_batch(self._noise[batch], self._label[batch]) for batch in indices.split(size)]
        image = torch.cat(images)[:NUM]
        return image if self._small is None else self._small(image)

    def _draw_batch(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        networks, calls = self._trainer.networks, self._trainer.method.sampling()
        networks.use_dropout(())
        random = torch.Generator().manual_seed(NUM)
        noise, label = noise.to(networks.device), label.to(networks.device)
        return calls.draw(
            networks["student"], noise, label, lambda number: torch.randn(noise.shape, generator=random).to(noise)
        )
