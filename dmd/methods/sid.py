"""Score identity Distillation (Zhou et al. 2024, arXiv 2404.04057), and losses that extend it.

These are SIM (arXiv 2410.16794), SiDA (arXiv 2410.14919) and Uni-Instruct (arXiv 2505.20755).

The student x = G(z) = D(scale z; sigma) is one call of a denoiser and learns from noise alone. T is the teacher, K the
fake denoiser that follows the student, both at x_s = x + s n, and Delta = T(x_s; s) - K(x_s; s). An update trains

    fake       lambda(s) |K(x_s; s) - x|^2                         ln s ~ N(mean, std^2), x without gradient,
    student    w Delta . ((T(x_s; s) - x) - alpha Delta)           s on Karras's curve, w = 1 / mean|x - T|,

in this order. If K is exact, E Delta . (T - x) is E|Delta|^2 (the score identity). Then alpha = 1/2 gives the gradient
of E|Delta|^2 / 2, and alpha = 1 gives it for a fixed distribution of x_s. Both hold only because gradients reach the
student through x and through x_s, the input of T and K; the weights of T and K get no gradient, and w is a constant.
SIM, Score Implicit Matching, replaces the square by another distance d of score differences,

    student    d'(Delta) . (K(x_s; s) - x)                          d(y) = (mean y^2 + c^2)^1/2,

which for d(y) = |y|^2 / 2 is alpha = 1.

SiDA adds a GAN loss without another network: the mean l over the channels of the fake denoiser's bottleneck is a logit
at each of its locations. With real images y at the same noise levels and with the same noise, and d values in an image,

    fake       + b / d E[lambda] (softplus(-l(y_s)) + softplus(l(x_s))) / 2,    means over locations,
    student    + a E[w] softplus(-l(x_s)),                                      l clamped to +-10.

All images have the same weight in it. The authors multiply the batch's mean of softplus by the lambda or w of each
image, which gives the same weights. Here E[lambda] is the mean over the distribution of s, and E[w] is the mean over
the images of the student's previous step; in the first step it is 1.

Uni-Instruct (Wang et al. 2025) minimises any f-divergence of the images without noise. With r = exp(l), where l is the
mean logit of an image, for the ratio of the densities of the teacher's and the student's images at level s, and with h
of `dmd.methods.parts.divergences`, that divergence is the integral over all s of E h(r) |Delta|^2 / s^3, and

    student    w (h Delta . (K(x_s; s) - x) + (1 - alpha) (h - r dh/dr) |Delta|^2)

has for alpha = 1/2 the gradient of E h(r) |Delta|^2 / 2, for alpha = 1 the same for fixed h and distribution of x_s. It
takes the gradient through x, x_s, T, K and r. For the reverse KL divergence, h = 1, this is SiD. For the forward one,
h = r, the second term is 0. r is limited to [0.1, 20]; at these bounds it is a constant, so r dh/dr is 0. Levels are
drawn as in SiD, which weights them in another way than the integral does.

Losses are means over pixels where the authors take sums, and the student's is not multiplied by 100. Such factors do
not change Adam's steps. But `gradient_clip` depends on them: with means, gradients stay below its value. The value of
the student's loss says little: with K exact and without w it is (1 - alpha) E|Delta|^2. Look at `student/gap` in the
log, the mean of |Delta| by noise level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmd.config.methods import sid as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.divergences import (
    DIVERGENCES,
    LARGEST_LOGIT,
    LARGEST_RATIO,
    SMALLEST_RATIO,
    Divergence,
    density_ratio,
)
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING, karras_curve, log_normal_sigmas

FLOOR = 1e-5  # lower bound of the mean error that the loss is divided by
NUM_BINS = 10  # of noise levels in the log


@dataclass
class Sid(Method[sections.Sid]):
    """SiD, SIM or Uni-Instruct, as the key `divergence` chooses.

    Attributes:
        lowest: noise level that the student's loss draws from.
        level_weight: E[lambda] over the noise levels of the fake denoiser's loss, with a GAN loss.
    """

    def __post_init__(self) -> None:
        key, curve = "distill.method.levels", self.config.levels
        self.lowest, _ = self.facts.levels(curve.sigma_min, None, key=key)
        top, last = self.facts.trained[1], self.levels(torch.ones(()))
        if float(last) > top * (1 + ROUNDING):
            raise ValueError(
                f"{key}: the student's loss would use noise levels up to {float(last):.4g}, "
                f"but the teacher has levels up to {top:.4g} only: lower levels.sigma_max or levels.last"
            )
        if self.config.adversarial:
            self.level_weight = self._mean_level_weight()
            self.buffers["weight"] = torch.ones((), device=self.device)

    @classmethod
    def steps(cls, config: sections.Sid, clock: Clock) -> tuple[Step, ...]:
        """Steps of the fake denoiser, then one of the student, each on fresh noise."""
        phase = clock.phase.config
        assert isinstance(phase, sections.SidPhase)
        noise = Part("noise", config.batch_size, "noise")
        judged = (noise, Part("images", config.batch_size, "images")) if config.adversarial else (noise,)
        student = (Step("student", ("student",), (noise,)),) if phase.train == "both" else ()
        return (*[Step("fake", ("fake",), judged)] * phase.fake_updates, *student)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels from the distribution of the step, and noise."""
        config, num = self.config, self.config.batch_size
        rows = {}
        if step.name == "fake":
            rows["sigma"] = log_normal_sigmas(
                num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random
            )
        else:
            position = torch.rand(num, generator=random)
            rows["sigma"] = self.levels(position)
            rows["bin"] = (position * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        rows["level_noise"] = self.noise(num, random)
        return {part.name: dict(rows) for part in step.parts}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The fake denoiser's denoising loss on generated images, or the student's loss by `divergence`."""
        teacher, fake, sigma, label = self.networks["teacher"], self.denoiser("fake"), rows["sigma"], rows["label"]
        if part.stream == "images":
            return self._real_loss(rows, log)
        gan = self.config.adversarial
        with torch.set_grad_enabled(step.name == "student"):
            image = self.generate(rows)
            noised = torch.addcmul(image, rows["level_noise"], per_sample(sigma, image))
        fake_x0 = fake(noised, sigma, label)
        if step.name == "fake":
            loss = denoising_loss(fake_x0, image, weight=fake.loss_weight(sigma))
            log.scalar("loss/fake", loss, len(image))
            return loss + self._judged_loss(noised, rows, log, name="gan/generated", sign=1) if gan else loss
        real_x0 = teacher(noised, sigma, label)
        values = self._student_values(image, noised, real_x0, fake_x0, rows, clock, log)
        loss = values.mean()
        log.scalar("loss/student", loss, len(image))
        log.binned("student/gap", (real_x0 - fake_x0).abs().flatten(1).mean(1), rows["bin"], NUM_BINS)
        log.spread("generated", image)
        return loss

    def _student_values(
        self, image: Tensor, noised: Tensor, real_x0: Tensor, fake_x0: Tensor, rows: Rows, clock: Clock, log: StepLog
    ) -> Tensor:
        """The student's loss of each image (B,), with the GAN loss."""
        divergence, gan = self.config.divergence, self.config.adversarial
        if isinstance(divergence, sections.ScoreImplicitMatching):
            return implicit_matching(image, real_x0, fake_x0, c=divergence.c)
        scale = clock.phase.config.adversarial_scale  # type: ignore[attr-defined]
        weight = gan.student_weight * scale if gan else 0.0
        judged = weight or isinstance(divergence, sections.FDivergence)
        logits = self._logits(noised, rows["sigma"], rows["label"]) if judged else torch.empty(0)
        if isinstance(divergence, sections.FDivergence):
            ratio = density_ratio(logits.mean(1))
            log.mean("ratio", ratio.detach())
            chosen, alpha = DIVERGENCES[divergence.name], divergence.alpha
            values = weighted_score_identity(image, real_x0, fake_x0, ratio, divergence=chosen, alpha=alpha)
        else:
            values = score_identity(image, real_x0, fake_x0, alpha=divergence.alpha)
        normalisers = normaliser(image, real_x0)
        values = normalisers * values
        if gan:
            log.mean("gan/weight", normalisers)
        if weight:
            realistic = functional.softplus(-logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)).mean(1)
            log.mean("loss/gan", realistic)
            values = values + weight * self.buffers["weight"] * realistic
        return values

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """Keeps E[w] of a step of the student for the next one."""
        if step.name == "student" and self.config.adversarial:
            self.buffers["weight"].copy_(log.value("gan/weight"))

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return Calls((self.config.sigma,))

    def levels(self, position: Tensor) -> Tensor:
        """Noise levels at positions (B,) in [0, 1] along the part of the curve that the student's loss draws from."""
        curve = self.config.levels
        return karras_curve(curve.last * position, first=self.lowest, last=curve.sigma_max, rho=curve.rho).float()

    def _real_loss(self, rows: Rows, log: StepLog) -> Tensor:
        """The GAN loss of real images, weighted."""
        noised = torch.addcmul(rows["image"], rows["level_noise"], per_sample(rows["sigma"], rows["image"]))
        return self._judged_loss(noised, rows, log, name="gan/real", sign=-1)

    def _judged_loss(self, noised: Tensor, rows: Rows, log: StepLog, *, name: str, sign: int) -> Tensor:
        """Half the fake denoiser's GAN loss on noised images: softplus(sign l), weighted."""
        assert self.config.adversarial is not None
        logits = self._logits(noised, rows["sigma"], rows["label"])
        log.mean(name, logits)
        weight = self.config.adversarial.fake_weight / math.prod(self.facts.shape) * self.level_weight
        return weight * functional.softplus(sign * logits).mean() / 2

    def _mean_level_weight(self) -> float:
        """E lambda(s) for ln s ~ N(mean, std^2), by a sum over z = (ln s - mean) / std from -20 to 20."""
        z = torch.linspace(-20, 20, 4001, dtype=torch.float64)
        density = torch.exp(-z.square() / 2)
        sigma = (self.config.sigma_log_mean + self.config.sigma_log_std * z).exp()
        return float((density * self.denoiser("fake").loss_weight(sigma.to(self.device)).cpu()).sum() / density.sum())

    def _logits(self, noised: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Logits (B, r^2), positive for real images."""
        return self.denoiser("fake").bottleneck(noised, sigma, label).mean(1).flatten(1)


def score_identity(image: Tensor, real_x0: Tensor, fake_x0: Tensor, *, alpha: float) -> Tensor:
    """Delta . ((T - x) - alpha Delta) as a mean over pixels (Zhou et al. 2024, Algorithm 1), (B,).

    Args:
        image: x of the student, (B, C, H, W).
        real_x0, fake_x0: T and K at the noised x, with their graph to x.
    """
    gap = real_x0 - fake_x0
    return (gap * ((real_x0 - image) - alpha * gap)).flatten(1).mean(1)


def weighted_score_identity(
    image: Tensor, real_x0: Tensor, fake_x0: Tensor, ratio: Tensor, *, divergence: Divergence, alpha: float
) -> Tensor:
    """h Delta . (K - x) + (1 - alpha) (h - r dh/dr) |Delta|^2 as a mean over pixels, (B,).

    Args:
        image: x of the student, (B, C, H, W).
        real_x0, fake_x0: T and K at the noised x, with their graph to x.
        ratio: r at the noised x, with its graph to x, (B,); at the bounds of `density_ratio` it is a constant.
        divergence: h and r dh/dr.
    """
    gap, weight = real_x0 - fake_x0, divergence.weight(ratio)
    along = (gap * (fake_x0 - image)).flatten(1).mean(1)
    slope = divergence.slope(ratio) * ((ratio != SMALLEST_RATIO) & (ratio != LARGEST_RATIO))  # 0 where r is clamped
    return weight * along + (1 - alpha) * (weight - slope) * gap.square().flatten(1).mean(1)


def normaliser(image: Tensor, real_x0: Tensor) -> Tensor:
    """w = 1 / mean|x - T| of each sample, a constant (B,)."""
    return 1 / (image.detach() - real_x0.detach()).abs().flatten(1).mean(1).clamp(min=FLOOR)


def implicit_matching(image: Tensor, real_x0: Tensor, fake_x0: Tensor, *, c: float) -> Tensor:
    """d'(Delta) . (K - x) as a mean over pixels for the pseudo-Huber d(y) = (mean y^2 + c^2)^1/2, (B,)."""
    gap = real_x0 - fake_x0
    length = (gap.flatten(1).square().mean(1) + c**2).sqrt()
    return (gap * (fake_x0 - image)).flatten(1).mean(1) / length


METHOD = Sid
