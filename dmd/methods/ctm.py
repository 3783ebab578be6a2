"""Consistency Trajectory Models (Kim et al. 2023, arXiv 2310.02279), distilled from a teacher.

The student steps along the teacher's ODE from level t to any level s below it,

    G(x; t, s) = s/t x + (1 - s/t) g(x; t, s),    g = D(x; t, s),

with x0 from a network that gets s, too. So G(x; t, t) = x for every network, and of the exact G the limit of g for
s -> t is the teacher's D. Levels t > u >= s are among N levels from sigma_max to sigma_min. With x_t = x + t n, the
teacher's x_u after the steps of Heun's method from t to u, and the target network G-, a moving average of the student
without gradient,

    soft consistency loss   d(G-(G(x_t; t, s); s, sigma_min), G-(G-(x_u; u, s); s, sigma_min))
    denoising loss          w lambda(t') |g(x + t' n'; t', t') - x|^2.

Both images of the first loss are at level s, and the outer G- takes them to images for the distance d; the gradient
passes through it. An update draws one number of steps from t to u for all of its images, n with a probability
proportional to n, then t and s uniformly. The second loss holds g near the teacher's D at s = t, with the weight lambda
of the network's preconditioning. Its levels are ln t' ~ N(mean, std^2), or for a fraction of the images uniform on the
upper 70 % of the curve that the N levels lie on.

Two things differ from the paper: there is no GAN loss, and w is a constant, where the paper sets it in every update by
the norms of the gradients of both losses. The authors' code takes the student itself, without gradient, for the step of
the target from u to s. At first the second time changes nothing, and g is the denoiser that it starts from. The student
draws in one call with s = 0, or in several along the ODE, each with the s of the next one (gamma = 0 in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.methods import ctm as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.joined_steps import heun_x0
from dmd.methods.parts.level_table import with_noise
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING, ascending_sigmas, karras_curve, log_normal_sigmas

TARGET = "target"
NUM_BINS = 10  # of levels t in the log
CURVE = 0.7  # part of the curve of levels, from the highest on, that the denoising loss draws from


@dataclass
class Ctm(Method[sections.Ctm]):
    """CTM.

    Attributes:
        sigma_min: the lowest level of the consistency loss.
    """

    def __post_init__(self) -> None:
        config, (_, highest) = self.config, self.facts.trained
        if config.calls[0] > highest * (1 + ROUNDING):
            raise ValueError(
                f"distill.method.calls: {config.calls[0]:g} is above {highest:.6g}, the highest noise level that the "
                "teacher was trained on"
            )
        self.sigma_min, _ = self.facts.levels(config.sigma_min, None, key="distill.method")

    @classmethod
    def steps(cls, config: sections.Ctm, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        return (Step(STUDENT, (STUDENT,), (Part("images", config.batch_size, "images"),)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """The levels from t to u (B, n + 1), the level s, noise, and level and noise of the denoising loss."""
        config, num = self.config, self.config.batch_size
        sigmas = self.sigmas().float()
        probabilities = torch.arange(1.0, config.solver_steps + 1)
        count = 1 + int(torch.multinomial(probabilities, 1, generator=random))
        upper = torch.randint(count, config.levels, (num,), generator=random)
        place = torch.rand(num, generator=random, dtype=torch.float64)
        end = (place * (upper - count + 1)).long()  # an index from 0 to that of u
        noise, other = torch.randn((2, num, *self.facts.shape), generator=random)
        rows = {
            "path": sigmas[upper[:, None] - torch.arange(count + 1)],
            "end": sigmas[end],
            "noise": noise,
            "bin": upper * NUM_BINS // config.levels,
        }
        if config.denoising_weight:
            rows |= {"level": self._denoising_levels(random), "level_noise": other}
        return {"images": rows}

    def sigmas(self) -> Tensor:
        """Levels of the consistency loss, ascending, float64 (N,)."""
        return ascending_sigmas(self.config.levels, self.sigma_min, self.config.calls[0], self.config.rho)

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The distance of the student to its target, and the weighted denoising loss."""
        image, label, path, end = rows["image"], rows["label"], rows["path"], rows["end"]
        noised = with_noise(image, rows["noise"], path[:, 0]).image
        with torch.no_grad():
            solved = self.solve(noised, path, label)
            target = self.to_image(self.jump(TARGET, solved, path[:, -1], end, label), end, label)
        x0 = self.to_image(self.jump(STUDENT, noised, path[:, 0], end, label), end, label)
        (distance,) = self.distances.values()
        loss = distance(x0, target)
        log.scalar("loss/consistency", loss, len(image))
        log.binned("consistency/gap", (x0 - target).detach().abs().flatten(1).mean(1), rows["bin"], NUM_BINS)
        return loss + self.config.denoising_weight * self._denoising(rows, log) if "level" in rows else loss

    def solve(self, image: Tensor, path: Tensor, label: Tensor) -> Tensor:
        """Images (B, C, H, W) at the last of the levels of a path (B, n + 1), by n steps of the teacher, Heun's."""
        teacher = self.networks[TEACHER]
        for sigma, lower in zip(path.unbind(1), path[:, 1:].unbind(1), strict=False):
            ratio = per_sample(lower / sigma, image)
            x0 = teacher(image, sigma, label)
            other = teacher(torch.lerp(x0, image, ratio), lower, label)
            image = torch.lerp(heun_x0(x0, other, sigma, lower), image, ratio)
        return image

    def jump(self, role: str, image: Tensor, sigma: Tensor, end: Tensor, label: Tensor) -> Tensor:
        """G of the network of a role: images (B, C, H, W) from levels sigma (B,) to levels end (B,)."""
        x0 = self.denoiser(role)(image, sigma, label, end=end)
        return torch.lerp(x0, image, per_sample(end / sigma, image))

    def to_image(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Images (B, C, H, W) from levels sigma (B,) to the lowest level, by the target network."""
        return self.jump(TARGET, image, sigma, torch.full_like(sigma, self.sigma_min), label)

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """The target network follows the student."""
        self.networks.follow(TARGET, STUDENT, self.config.target_decay)

    def sampling(self) -> Calls:
        """One call at the highest level, or several along the student's own steps."""
        return Calls(self.config.calls, between="ode", map="mean-flow")

    def _denoising_levels(self, random: torch.Generator) -> Tensor:
        """Levels of the denoising loss, float32 (B,)."""
        config, num = self.config, self.config.batch_size
        levels = log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
        place, chosen = torch.rand((2, num), generator=random)
        curve = karras_curve(CURVE * place, first=config.calls[0], last=self.sigma_min, rho=config.rho)
        return torch.where(chosen < config.curve_share, curve.float(), levels)

    def _denoising(self, rows: Rows, log: StepLog) -> Tensor:
        """The denoising loss of the student's steps of length 0."""
        image, level, student = rows["image"], rows["level"], self.denoiser(STUDENT)
        noised = with_noise(image, rows["level_noise"], level).image
        x0 = student(noised, level, rows["label"], end=level)
        loss = denoising_loss(x0, image, weight=student.loss_weight(level))
        log.scalar("loss/denoising", loss, len(image))
        return loss


METHOD = Ctm
