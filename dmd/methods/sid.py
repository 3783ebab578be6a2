"""Score identity Distillation (Zhou et al. 2024, arXiv 2404.04057), and Score Implicit Matching (arXiv 2410.16794).

The student x = G(z) = D(scale z; sigma) is one call of a denoiser and learns from noise alone. T is the teacher, K the
fake denoiser that follows the student, both at x_s = x + s n, and Delta = T(x_s; s) - K(x_s; s). An update trains

    fake       lambda(s) |K(x_s; s) - x|^2                         ln s ~ N(mean, std^2), x without gradient,
    student    w Delta . ((T(x_s; s) - x) - alpha Delta)           s on Karras's curve, w = 1 / mean|x - T|,

in this order. If K is exact, E Delta . (T - x) is E|Delta|^2 (the score identity). Then alpha = 1/2 gives the gradient
of E|Delta|^2 / 2, and alpha = 1 gives it for a fixed distribution of x_s. Both hold only because gradients reach the
student through x and through x_s, the input of T and K; the weights of T and K get no gradient, and w is a constant.
SIM replaces the square by another distance d of score differences,

    student    d'(Delta) . (K(x_s; s) - x)                          d(y) = (mean y^2 + c^2)^1/2,

which for d(y) = |y|^2 / 2 is alpha = 1. Losses are means over pixels where the authors take sums, and the student's is
not multiplied by 100: such factors do not change Adam's steps, but `gradient_clip` depends on them: with
means, gradients stay below its value. The value of the student's loss says little: with K exact and without w it is
(1 - alpha) E|Delta|^2. Look at `student/gap` in the log, the mean of |Delta| by noise level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.methods import sid as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import karras_curve, log_normal_sigmas

FLOOR = 1e-5  # lower bound of the mean error that the loss is divided by
NUM_BINS = 10  # of noise levels in the log


@dataclass
class Sid(Method[sections.Sid]):
    """SiD, or SIM, as the key `divergence` chooses.

    Attributes:
        lowest: noise level that the student's loss draws from.
    """

    def __post_init__(self) -> None:
        key, curve = "distill.method.levels", self.config.levels
        self.lowest, _ = self.facts.levels(curve.sigma_min, None, key=key)
        top, last = self.facts.trained[1], self.levels(torch.ones(()))
        if float(last) > top * (1 + 1e-6):
            raise ValueError(
                f"{key}: the student's loss would use noise levels up to {float(last):.4g}, "
                f"but the teacher has levels up to {top:.4g} only: lower levels.sigma_max or levels.last"
            )

    @classmethod
    def steps(cls, config: sections.Sid, clock: Clock) -> tuple[Step, ...]:
        """Steps of the fake denoiser, then one of the student, each on fresh noise."""
        phase = clock.phase.config
        assert isinstance(phase, sections.SidPhase)
        noise = (Part("noise", config.batch_size, "noise"),)
        return (*[Step("fake", ("fake",), noise)] * phase.fake_updates, Step("student", ("student",), noise))

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
        rows["level_noise"] = torch.randn((num, *self.facts.shape), generator=random)
        return {"noise": rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The fake denoiser's denoising loss on generated images, or the student's loss by `divergence`."""
        teacher, fake, sigma, label = self.networks["teacher"], self._denoiser("fake"), rows["sigma"], rows["label"]
        with torch.set_grad_enabled(step.name == "student"):
            image = self.generate(rows)
            noised = torch.addcmul(image, rows["level_noise"], per_sample(sigma, image))
        fake_x0 = fake(noised, sigma, label)
        if step.name == "fake":
            loss = denoising_loss(fake_x0, image, weight=fake.loss_weight(sigma))
            log.scalar("loss/fake", loss, len(image))
            return loss
        real_x0, divergence = teacher(noised, sigma, label), self.config.divergence
        if isinstance(divergence, sections.ScoreImplicitMatching):
            values = implicit_matching(image, real_x0, fake_x0, c=divergence.c)
        else:
            values = normaliser(image, real_x0) * score_identity(image, real_x0, fake_x0, alpha=divergence.alpha)
        loss = values.mean()
        log.scalar("loss/student", loss, len(image))
        log.binned("student/gap", (real_x0 - fake_x0).abs().flatten(1).mean(1), rows["bin"], NUM_BINS)
        log.spread("generated", image)
        return loss

    def generate(self, rows: Rows) -> Tensor:
        """One-step images G(z, y) of unit noise (B, C, H, W)."""
        return self.sampling().draw(self.networks["student"], rows["noise"], rows["label"])

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return Calls((self.config.sigma,))

    def levels(self, position: Tensor) -> Tensor:
        """Noise levels at positions (B,) in [0, 1] along the part of the curve that the student's loss draws from."""
        curve = self.config.levels
        return karras_curve(curve.last * position, first=self.lowest, last=curve.sigma_max, rho=curve.rho).float()

    def _denoiser(self, role: str) -> Denoiser:
        return self.networks[role]  # type: ignore[return-value]


def score_identity(image: Tensor, real_x0: Tensor, fake_x0: Tensor, *, alpha: float) -> Tensor:
    """Delta . ((T - x) - alpha Delta) as a mean over pixels (Zhou et al. 2024, Algorithm 1), (B,).

    Args:
        image: x of the student, (B, C, H, W).
        real_x0, fake_x0: T and K at the noised x, with their graph to x.
    """
    gap = real_x0 - fake_x0
    return (gap * ((real_x0 - image) - alpha * gap)).flatten(1).mean(1)


def normaliser(image: Tensor, real_x0: Tensor) -> Tensor:
    """w = 1 / mean|x - T| of each sample, a constant (B,)."""
    return 1 / (image.detach() - real_x0.detach()).abs().flatten(1).mean(1).clamp(min=FLOOR)


def implicit_matching(image: Tensor, real_x0: Tensor, fake_x0: Tensor, *, c: float) -> Tensor:
    """d'(Delta) . (K - x) as a mean over pixels for the pseudo-Huber d(y) = (mean y^2 + c^2)^1/2, (B,)."""
    gap = real_x0 - fake_x0
    length = (gap.flatten(1).square().mean(1) + c**2).sqrt()
    return (gap * (fake_x0 - image)).flatten(1).mean(1) / length


METHOD = Sid
