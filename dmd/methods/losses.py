"""Losses of DMD (Yin et al. 2023, Algorithms 2 and 3) whose gradients are left on generator and fake denoiser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dmd.diffusion.denoiser import per_sample
from dmd.diffusion.objective import denoising_loss
from dmd.methods.denoisers import Denoisers, drawn
from dmd.methods.matching import matching_gradient, matching_loss
from dmd.methods.numbers import Batch, Joined, Label, Pairs
from dmd.methods.readings import Readings, matching_row


@dataclass(frozen=True)
class Matched:
    """A matching batch while its micro batches are worked on.

    Attributes:
        index, noise: noise level and noise of every row, (B,) and (B, C, H, W), on the CPU.
        weight: of the loss.
        readings: what micro batches leave for the log.
    """

    index: torch.Tensor
    noise: torch.Tensor
    weight: float
    readings: Readings


@dataclass
class Losses(Denoisers):
    """The denoisers, and what the generator and the fake one are trained on."""

    def begin_matching(
        self, shape: tuple[int, ...], weight: float, phase: Mapping[str, Any], generator: torch.Generator
    ) -> Matched:
        """Draws noise levels and noise for the matching loss of a batch (B, C, H, W), x with what may join it."""
        levels, last = self.numbers["levels"], phase.get("max_index")
        stop = 1 + (levels["max_index"] if last is None else last)
        index, noise = drawn(shape, levels["min_index"], stop, generator)
        return Matched(index, noise, weight, Readings(self.share))

    def match(self, batch: Batch, matched: Matched) -> None:
        """Leaves the gradient of the matching loss of x on the generator."""
        for place in self.share.slices(len(batch.noise)):
            image = self.generate(batch.noise[place], batch.label[place])
            self._matching_loss(image, batch.label[place], matched, place).backward()

    def end_matching(self, matched: Matched, row: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the log keeps of a matching batch, into `row`; returns its images, detached."""
        whole = matched.readings.whole()
        generated, factor, finite, gap = (whole.pop(name) for name in ("image", "factor", "finite", "gap"))
        index = matched.index.to(self.device)
        row |= whole | matching_row(factor, finite, gap, index, num_levels=len(self.sigmas))
        return generated

    def regress(
        self, pairs: Pairs, weight: float, row: dict[str, torch.Tensor], *, matched: Matched | None, keep: bool
    ) -> torch.Tensor:
        """Leaves the gradient of the regression loss on the generator.

        Args:
            pairs: the regression batch.
            weight: of its loss.
            row: of the log, to be added to.
            matched: the matching batch that x_ref joins, as its last rows: one pass and one gradient for both losses.
            keep: whether images are wanted.

        Returns:
            The images, detached, if to `keep`.
        """
        num, readings = len(pairs[0]), Readings(self.share)
        behind = 0 if matched is None else len(matched.index) - num
        for place in self.share.slices(num):
            noise, label, reference = (values[place].to(self.device) for values in pairs)
            image = self.generate(noise, label)
            part, distance = len(image) / num, self.distance(image, reference)
            readings.add("regression_loss", part * distance)
            loss = weight * part * distance
            if matched is not None:
                joined = slice(place.start + behind, place.stop + behind)
                loss = loss + self._matching_loss(image, label, matched, joined)
            loss.backward()
            if keep:  # processes exchange what is put
                readings.put("image", image, place, num)
        whole = readings.whole()
        row["regression_loss"] = whole["regression_loss"]
        return whole.get("image", noise.new_empty(0))

    def denoise(self, image: torch.Tensor, label: Label, generator: torch.Generator, readings: Readings) -> None:
        """Leaves the gradient of the denoising loss of a batch of generated images on the fake denoiser."""
        index, noise = drawn(image.shape, 0, len(self.sigmas), generator)
        places = self.share.slices(len(image))
        if isinstance(label, Joined):  # this process has its part of both
            places = self.share.slices(len(label.first))
            places += self.share.slices(len(label.second), behind=len(label.first))
        for place in places:
            noised, sigma = self.noised(image[place], index[place], noise[place])[:2]
            denoised = self.fake(noised, sigma, label[place].to(self.device))
            self._fake_loss(denoised, image[place], sigma, len(denoised) / len(image), readings)

    def _matching_loss(self, image: torch.Tensor, label: torch.Tensor, matched: Matched, place: slice) -> torch.Tensor:
        """The weighted loss of a micro batch, which lies at `place` of the matching batch."""
        num, readings = len(matched.index), matched.readings
        gradient, found = self._matching_gradient(image.detach(), label.to(self.device), matched, place)
        part, loss = len(image) / num, matching_loss(image, gradient)
        readings.add("matching_loss", part * loss)
        for name, values in {"image": image, **found}.items():
            readings.put(name, values, place, num)
        return matched.weight * part * loss

    def _matching_gradient(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        matched: Matched,
        place: slice,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The gradient for a micro batch, zero where it is not finite, and what the log keeps of each sample."""
        noised, sigma, alpha = self.noised(image, matched.index[place], matched.noise[place])
        with torch.no_grad():
            real_x0 = self.teacher(noised, sigma, label)
        if not self.numbers["fake_score"]:  # Figure 3 (a): a fake score of 0 means mu_fake = x_t
            fake_x0 = noised
        else:
            with torch.set_grad_enabled(self.numbers["shared_noise"]):
                fake_x0 = self.fake(noised, sigma, label)
            if self.numbers["shared_noise"]:
                self._fake_loss(fake_x0, image, sigma, len(image) / len(matched.index), matched.readings)
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

    def _fake_loss(
        self, denoised: torch.Tensor, image: torch.Tensor, sigma: torch.Tensor, part: float, readings: Readings
    ) -> None:
        """Leaves the gradient of the denoising loss on the fake denoiser."""
        loss = part * denoising_loss(denoised, image, weight=self.fake.loss_weight(sigma))
        loss.backward()
        readings.add("fake_loss", loss)
