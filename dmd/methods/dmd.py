"""Distribution Matching Distillation (Yin et al. 2023, Algorithm 1): one update of generator and fake denoiser."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmd.diffusion.denoiser import Denoiser, per_sample
from dmd.diffusion.objective import denoising_loss
from dmd.methods.levels import noise_table
from dmd.methods.matching import matching_gradient, matching_loss

NUM_BINS = 10  # of noise levels in the log
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Numbers(TypedDict):
    """Section `distill` of an experiment; what each number means stands in the config schema."""

    sigma: float
    levels: dict[str, Any]
    weighting: str
    alpha_factor: bool
    fake_score: bool
    matching_weight: float
    regression_weight: float
    regression_distance: dict[str, Any]
    matching_batch_size: int
    regression_batch_size: int
    shared_noise: bool
    optimiser: dict[str, Any]
    ema_decay: float
    phases: list[dict[str, Any]]
    seed: int
    checkpoint_every: int
    grid_every: int
    log_every: int
    device: str
    threads: int


@dataclass(frozen=True)
class Batch:
    """Unit noise (B, C, H, W) and labels (B,) of the matching loss; (noise, label, image) of the regression loss."""

    noise: torch.Tensor
    label: torch.Tensor
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


@dataclass
class Distillation:
    """The three denoisers of DMD with everything an update changes.

    Attributes:
        teacher: real score; any denoiser, frozen.
        generator, fake: trained, dropout off.
        numbers: section `distill` of the experiment.
        distance: of the regression loss, (generated, reference) -> scalar.
        average: moving average of the generator's network.
    """

    teacher: Denoise
    generator: Denoiser
    fake: Denoiser
    numbers: Numbers
    distance: Distance
    average: AveragedModel = field(init=False)
    generator_optimiser: torch.optim.AdamW = field(init=False)
    fake_optimiser: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        numbers = self.numbers
        optimiser = numbers["optimiser"]
        self.generator.eval().requires_grad_(True)
        self.fake.eval().requires_grad_(True)
        self.average = AveragedModel(self.generator.network, multi_avg_fn=get_ema_multi_avg_fn(numbers["ema_decay"]))
        self.generator_optimiser = _adamw(self.generator, optimiser, optimiser["learning_rate"])
        fake_rate = optimiser["fake_learning_rate"]
        self.fake_optimiser = _adamw(self.fake, optimiser, fake_rate or optimiser["learning_rate"])
        device = next(self.generator.parameters()).device
        self._alphas, self._sigmas = (part.to(device) for part in noise_table(numbers["levels"], self.teacher))

    def generate(self, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """One-step images G(z, y) = D(sigma z; sigma, y) from unit noise (B, C, H, W)."""
        sigma = self.numbers["sigma"]
        return self.generator(sigma * noise, noise.new_full((len(noise),), sigma), label)

    def generator_update(
        self, batch: Batch, phase: dict[str, Any], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One optimiser step of the generator on matching and regression loss, scaled by section and phase.

        With `shared_noise` the fake denoiser's own first loss reuses this noised batch and its pass: its gradient
        is left on the fake denoiser for `fake_update` to apply, and its noise levels are those of the matching range.

        Returns:
            The generated images of the matching batch, detached (empty if there was no matching loss), and what
            the log keeps of this update, as scalars.
        """
        numbers = self.numbers
        row: dict[str, torch.Tensor] = {}
        matching = numbers["matching_weight"] * phase["matching_scale"]
        regression = numbers["regression_weight"] * phase["regression_scale"]
        generated = seen = batch.noise.new_empty(0)
        if matching:
            image = self.generate(batch.noise, batch.label)
            gradient = self._matching_gradient(image.detach(), batch.label, generator, row)
            row["matching_loss"] = matching_loss(image, gradient)
            (matching * row["matching_loss"]).backward()
            generated = seen = image.detach()
        if regression and batch.pairs is not None:
            noise, label, reference = batch.pairs
            image = self.generate(noise, label)
            row["regression_loss"] = self.distance(image, reference)
            (regression * row["regression_loss"]).backward()
            seen = generated if matching else image.detach()
        row["generated_mean"], row["generated_std"] = seen.mean(), seen.std()
        row["generator_gradient_norm"] = self._step(self.generator, self.generator_optimiser)
        self.average.update_parameters(self.generator.network)
        return generated, {name: value.detach() for name, value in row.items()}

    def fake_update(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        generator: torch.Generator,
        *,
        has_gradient: bool = False,
    ) -> dict[str, torch.Tensor]:
        """One optimiser step of the fake denoiser on generated images (B, C, H, W), noise levels of the whole table."""
        row: dict[str, torch.Tensor] = {}
        if not has_gradient:
            index = torch.randint(len(self._sigmas), (len(image),), generator=generator).to(image.device)
            noised, sigma = self._noised(image, index, generator)
            row["fake_loss"] = self._fake_loss(self.fake(noised, sigma, label), image, sigma)
        row["fake_gradient_norm"] = self._step(self.fake, self.fake_optimiser)
        return {name: value.detach() for name, value in row.items()}

    def forget_moments(self) -> None:
        """Clears the moments of the generator's optimiser, for a phase whose gradient has another scale.

        Second moments of a regression phase are tiny: carried into a matching phase they would multiply its first
        steps by up to 1 / sqrt(1 - beta2), about 30, and undo what was learnt.
        """
        self.generator_optimiser.state.clear()

    def set_learning_rate(self, factor: float) -> None:
        """Sets both optimisers to their configured rate times `factor`."""
        optimiser = self.numbers["optimiser"]
        rate, fake_rate = (
            optimiser["learning_rate"],
            optimiser["fake_learning_rate"] or optimiser["learning_rate"],
        )
        for group in self.generator_optimiser.param_groups:
            group["lr"] = rate * factor
        for group in self.fake_optimiser.param_groups:
            group["lr"] = fake_rate * factor

    def _noised(
        self, image: torch.Tensor, index: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        sigma = self._sigmas[index]
        return torch.addcmul(image, noise, per_sample(sigma, image)), sigma

    def _fake_loss(self, denoised: torch.Tensor, image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        loss = denoising_loss(denoised, image, weight=self.fake.loss_weight(sigma))
        loss.backward()
        return loss

    def _matching_gradient(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        generator: torch.Generator,
        row: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        numbers, levels = self.numbers, self.numbers["levels"]
        index = torch.randint(levels["min_index"], levels["max_index"] + 1, (len(image),), generator=generator).to(
            image.device
        )
        noised, sigma = self._noised(image, index, generator)
        with torch.no_grad():
            real_x0 = self.teacher(noised, sigma, label)
        fake_x0 = self._fake_x0(noised, image, sigma, label, row)
        alpha = self._alphas[index]
        gradient, factor = matching_gradient(
            image,
            real_x0,
            fake_x0,
            alpha=alpha,
            sigma=alpha * sigma,
            weighting=numbers["weighting"],
            alpha_factor=numbers["alpha_factor"],
        )
        finite = gradient.flatten(1).isfinite().all(1)
        row["matching_factor"] = torch.where(finite, factor, torch.nan).nanmean()
        row["nonfinite_samples"] = (~finite).sum().float()
        gap = (real_x0 - fake_x0).abs().flatten(1).mean(1)
        row |= _binned(gap, index, len(self._sigmas))
        return torch.where(per_sample(finite, gradient), gradient, 0.0)

    def _fake_x0(
        self,
        noised: torch.Tensor,
        image: torch.Tensor,
        sigma: torch.Tensor,
        label: torch.Tensor,
        row: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        if not self.numbers["fake_score"]:  # Figure 3 (a): a fake score of 0 means mu_fake = x_t
            return noised
        if not self.numbers["shared_noise"]:
            with torch.no_grad():
                return self.fake(noised, sigma, label)
        fake_x0 = self.fake(noised, sigma, label)
        row["fake_loss"] = self._fake_loss(fake_x0, image, sigma)
        return fake_x0.detach()

    def _step(self, denoiser: Denoiser, optimiser: torch.optim.Optimizer) -> torch.Tensor:
        norm = torch.nn.utils.clip_grad_norm_(denoiser.network.parameters(), self.numbers["optimiser"]["gradient_clip"])
        optimiser.step()
        optimiser.zero_grad()
        return norm


def _adamw(denoiser: Denoiser, numbers: dict[str, Any], learning_rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        denoiser.network.parameters(),
        lr=learning_rate,
        betas=tuple(numbers["betas"]),
        weight_decay=numbers["weight_decay"],
        fused=True,
    )


def _binned(values: torch.Tensor, index: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Mean of `values` over samples of each tenth of the noise table; NaN where a bin is empty."""
    bins = index * NUM_BINS // count
    total = values.new_zeros(NUM_BINS).index_add(0, bins, values)
    number = values.new_zeros(NUM_BINS).index_add(0, bins, torch.ones_like(values))
    return {f"gap_bin{bin}": mean for bin, mean in enumerate(total / number)}
