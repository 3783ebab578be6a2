"""The three denoisers of a distillation: one-step images of the generator, noised images for the others."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dmd.diffusion.denoiser import Denoiser, per_sample, start_scale
from dmd.methods.levels import noise_table
from dmd.methods.numbers import Numbers, Rows
from dmd.methods.share import Share

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Denoisers:
    """The three denoisers, and what passes of theirs are made of.

    Random numbers are drawn for the whole batch, on the CPU; networks see this process's micro batches of it.

    Attributes:
        teacher: real score; any denoiser, frozen.
        generator, fake: trained, dropout off.
        numbers: section `distill` of the experiment.
        distance: of the regression loss, (generated, reference) -> scalar.
        share: this process's part of every batch.
        device: of the networks.
        alphas, sigmas: of each noise level, float32 (T,), sigma ascending.
    """

    teacher: Denoise
    generator: Denoiser
    fake: Denoiser
    numbers: Numbers
    distance: Distance
    share: Share = Share()
    device: torch.device = field(init=False)
    alphas: torch.Tensor = field(init=False)
    sigmas: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.device = next(self.generator.parameters()).device
        table = noise_table(self.numbers["levels"], self.teacher)
        self.alphas, self.sigmas = (part.to(self.device) for part in table)

    def generate(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """One-step images G(z, y) = D(scale z; sigma, y) from unit noise (B, C, H, W); see `start_scale`."""
        noise, label = noise.to(self.device), label.to(self.device)
        sigma = self.numbers["sigma"]
        return self.generator(start_scale(self.generator, sigma) * noise, noise.new_full((len(noise),), sigma), label)

    @torch.no_grad()
    def generate_all(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """`generate` without gradient, by this process alone, in micro batches.

        Compiled networks get batches of the size they are trained on, padded: another shape would be compiled anew.
        """
        size, num = self.share.micro_batch_size or len(noise), len(noise)
        if self.numbers.get("compute", {}).get("compile"):
            first = self.share.slices(self.numbers["matching_batch_size"])[0]
            size = first.stop - first.start
            places = torch.arange(-(-num // size) * size) % num
            noise, label = noise[places], label[places]
        parts = zip(noise.split(size), label.split(size), strict=True)
        return torch.cat([self.generate(*part) for part in parts])[:num]

    @torch.no_grad()
    def generate_share(self, noise: torch.Tensor, label: torch.Tensor | Rows) -> torch.Tensor:
        """`generate` without gradient, for this process's part of a batch; zeros elsewhere."""
        image = torch.zeros_like(noise, device=self.device)
        for place in self.share.slices(len(noise)):
            image[place] = self.generate(noise[place], label[place])
        return image

    def noised(
        self, image: torch.Tensor, index: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_t of a micro batch (Eq. 3), and sigma and alpha of each sample's noise level."""
        index, noise = index.to(self.device), noise.to(self.device)
        sigma = self.sigmas[index]
        return torch.addcmul(image, noise, per_sample(sigma, image)), sigma, self.alphas[index]


def drawn(
    shape: tuple[int, ...], first: int, stop: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of noise levels, first .. stop - 1, and noise for a whole batch (B, C, H, W), on the CPU."""
    index = torch.randint(first, stop, shape[:1], generator=generator)
    return index, torch.randn(shape, generator=generator)
