"""Losses of DMD (Yin et al. 2023, Algorithms 2 and 3) whose gradients are left on generator and fake denoiser."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dmd.diffusion.denoiser import Denoiser, per_sample, start_scale
from dmd.diffusion.objective import denoising_loss
from dmd.methods.levels import noise_table
from dmd.methods.matching import matching_gradient, matching_loss
from dmd.methods.numbers import Batch, Numbers, Pairs
from dmd.methods.readings import Readings, matching_row
from dmd.methods.share import Share

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Losses:
    """The three denoisers and what they are trained on.

    Random numbers are drawn for the whole batch, on the CPU; networks see this process's micro batches of it.

    Attributes:
        teacher: real score; any denoiser, frozen.
        generator, fake: trained, dropout off.
        numbers: section `distill` of the experiment.
        distance: of the regression loss, (generated, reference) -> scalar.
        share: this process's part of every batch.
    """

    teacher: Denoise
    generator: Denoiser
    fake: Denoiser
    numbers: Numbers
    distance: Distance
    share: Share = Share()

    def __post_init__(self) -> None:
        self._device = next(self.generator.parameters()).device
        table = noise_table(self.numbers["levels"], self.teacher)
        self._alphas, self._sigmas = (part.to(self._device) for part in table)

    def generate(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """One-step images G(z, y) = D(scale z; sigma, y) from unit noise (B, C, H, W); see `start_scale`."""
        noise, label = noise.to(self._device), label.to(self._device)
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
    def generate_share(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """`generate` without gradient, for this process's part of a batch; zeros elsewhere."""
        image = torch.zeros_like(noise, device=self._device)
        for place in self.share.slices(len(noise)):
            image[place] = self.generate(noise[place], label[place])
        return image

    def match(
        self, batch: Batch, weight: float, generator: torch.Generator, row: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Leaves the gradient of the matching loss on the generator; returns the images, detached."""
        levels, num, readings = self.numbers["levels"], len(batch.noise), Readings(self.share)
        drawn = _drawn(batch.noise, levels["min_index"], levels["max_index"] + 1, generator)
        for place in self.share.slices(num):
            image = self.generate(batch.noise[place], batch.label[place])
            part = len(image) / num
            label = batch.label[place].to(self._device)
            gradient, found = self._matching_gradient(image.detach(), label, drawn, place, part, readings)
            loss = matching_loss(image, gradient)
            (weight * part * loss).backward()
            readings.add("matching_loss", part * loss)
            for name, values in {"image": image, **found}.items():
                readings.put(name, values, place, num)
        whole = readings.whole()
        generated, factor, finite, gap = (whole.pop(name) for name in ("image", "factor", "finite", "gap"))
        index = drawn[0].to(self._device)
        row |= whole | matching_row(factor, finite, gap, index, num_levels=len(self._sigmas))
        return generated

    def regress(
        self,
        pairs: Pairs,
        weight: float,
        row: dict[str, torch.Tensor],
        *,
        keep: bool,
    ) -> torch.Tensor:
        """Leaves the gradient of the regression loss on the generator; returns the images, detached, if to `keep`."""
        num, readings = len(pairs[0]), Readings(self.share)
        for place in self.share.slices(num):
            noise, label, reference = (values[place].to(self._device) for values in pairs)
            image = self.generate(noise, label)
            part = len(image) / num
            loss = self.distance(image, reference)
            (weight * part * loss).backward()
            readings.add("regression_loss", part * loss)
            if keep:  # processes exchange what is put
                readings.put("image", image, place, num)
        whole = readings.whole()
        row["regression_loss"] = whole["regression_loss"]
        return whole.get("image", noise.new_empty(0))

    def denoise(self, image: torch.Tensor, label: torch.Tensor, generator: torch.Generator, readings: Readings) -> None:
        """Leaves the gradient of the denoising loss of a batch of generated images on the fake denoiser."""
        drawn = _drawn(image, 0, len(self._sigmas), generator)
        for place in self.share.slices(len(image)):
            noised, index = self._noised(image[place], drawn, place)
            sigma = self._sigmas[index]
            denoised = self.fake(noised, sigma, label[place].to(self._device))
            self._fake_loss(denoised, image[place], sigma, len(denoised) / len(image), readings)

    def _matching_gradient(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        drawn: tuple[torch.Tensor, torch.Tensor],
        place: slice,
        part: float,
        readings: Readings,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The gradient for a micro batch, zero where it is not finite, and what the log keeps of each sample."""
        noised, index = self._noised(image, drawn, place)
        alpha, sigma = self._alphas[index], self._sigmas[index]
        with torch.no_grad():
            real_x0 = self.teacher(noised, sigma, label)
        if not self.numbers["fake_score"]:  # Figure 3 (a): a fake score of 0 means mu_fake = x_t
            fake_x0 = noised
        else:
            with torch.set_grad_enabled(self.numbers["shared_noise"]):
                fake_x0 = self.fake(noised, sigma, label)
            if self.numbers["shared_noise"]:
                self._fake_loss(fake_x0, image, sigma, part, readings)
                fake_x0 = fake_x0.detach()
        gradient, factor = matching_gradient(
            image,
            real_x0,
            fake_x0,
            alpha=alpha,
            sigma=alpha * sigma,
            weighting=self.numbers["weighting"],
            alpha_factor=self.numbers["alpha_factor"],
        )
        finite = gradient.flatten(1).isfinite().all(1)
        gap = (real_x0 - fake_x0).abs().flatten(1).mean(1)
        found = {"factor": factor, "finite": finite.float(), "gap": gap}
        return torch.where(per_sample(finite, gradient), gradient, 0.0), found

    def _noised(
        self, image: torch.Tensor, drawn: tuple[torch.Tensor, torch.Tensor], place: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t of a micro batch (Eq. 3) and the index of each sample's noise level."""
        index, noise = (values[place].to(self._device) for values in drawn)
        return torch.addcmul(image, noise, per_sample(self._sigmas[index], image)), index

    def _fake_loss(
        self, denoised: torch.Tensor, image: torch.Tensor, sigma: torch.Tensor, part: float, readings: Readings
    ) -> None:
        """Leaves the gradient of the denoising loss on the fake denoiser."""
        loss = part * denoising_loss(denoised, image, weight=self.fake.loss_weight(sigma))
        loss.backward()
        readings.add("fake_loss", loss)


def _drawn(like: torch.Tensor, first: int, stop: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of noise levels, first .. stop - 1, and noise for a whole batch, on the CPU."""
    index = torch.randint(first, stop, (len(like),), generator=generator)
    return index, torch.randn(like.shape, generator=generator)
