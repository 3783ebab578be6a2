"""Images of fixed noise that a student draws while it is trained."""

from collections.abc import Callable

import torch

from dmd.methods.parts.decoded import Decoded
from dmd.report.grids import decoded
from dmd.sampling.noise import seeded_noise
from dmd.train.trainer import Trainer

NUM = 64  # images of a grid


class Grid:
    """Images of fixed noise that show how far a student is.

    Compiled networks get batches of the size they are trained on, padded: another shape would be compiled anew.
    """

    def __init__(self, trainer: Trainer, texts: Callable[[int], torch.Tensor] | None) -> None:
        """texts: conditions of so many images, where they are text."""
        facts = trainer.method.facts
        compiled = trainer.training.compute.compile
        self._trainer = trainer
        self._size = trainer.pass_size() if compiled else trainer.split.micro_batch_size
        self._noise, balanced = seeded_noise(range(NUM), facts.shape, num_classes=facts.num_classes, labels="balanced")
        self._label = balanced if texts is None else texts(NUM)
        codecs = [each.codec for each in trainer.method.distances.values() if isinstance(each, Decoded)]
        self._codec = codecs[0] if codecs else None

    @torch.no_grad()
    def draw(self) -> torch.Tensor:
        """float32 (64, C, H, W), decoded where a decoder of latents is at hand."""
        size = self._size or NUM
        places = torch.arange(-(-NUM // size) * size) % NUM
        images = [self._drawn(self._noise[some], self._label[some]) for some in places.split(size)]
        image = torch.cat(images)[:NUM]
        return image if self._codec is None else decoded(image, self._codec)

    def _drawn(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        networks, calls = self._trainer.networks, self._trainer.method.sampling()
        assert calls is not None, "a denoiser has no grid"
        networks.use_dropout(())
        random = torch.Generator().manual_seed(NUM)
        given = noise.to(networks.device), label.to(networks.device)
        return calls.draw(
            networks["student"], *given, lambda number: torch.randn(noise.shape, generator=random).to(given[0])
        )
