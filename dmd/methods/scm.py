"""Continuous-time consistency models (sCM; Lu and Song 2024, arXiv 2410.11081) in variance-exploding coordinates.

The paper has t = atan(s / sd) for the noise level s and the deviation sd of the data, z = x cos t, and networks F with
D = cos t z - sd sin t F. D is a consistency model by itself: D = z at t = 0. It is trained to be constant along the
ODE. With D- the student without gradient, and D' its derivative by ln s along dx/d(ln s) = x - T, T the teacher's x0,
or with `teach: training` the image, the tangent is

    g sin t = (1 - q) cos^2 t (D- - T) + q D',

where q rises from 0 to 1 in `tangent_warmup` updates; with q = 1 it is sin t cos t dD/dt, whose value stays finite at
all levels. This is the paper's g, since D' = sin t cos t dD/dt and sd F - dz/dt = (T - D) / sin t. The derivative is
taken by forward-mode differentiation. With g / (|g| + c) for g, the norm over all values of an image,

    loss = e^w / (d s) |F - F- - g|^2 - w,   F - F- = -(D - D-) / (sd sin t),

for images of d values. w(s) is a small network of its own, the logarithm of the weight: it is best at minus the
logarithm of the mean of what e^w multiplies. Levels are drawn by ln s ~ N(mean, std^2).

Value and derivative come from one pass, the gradient from a second one, with the same dropout. The noise condition of
EDM, ln(s) / 4, is kept, where the paper has t; random Fourier features of it (network ncsnpp) have derivatives that are
large and noisy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.config.methods import scm as sections
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.forward_derivative import forward_derivative
from dmd.methods.parts.uncertainty import Uncertainty
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import log_normal_sigmas

NUM_BINS = 10  # of noise levels in the log; equally many are drawn in each


@dataclass
class Scm(Method[sections.Scm]):
    """sCM."""

    @classmethod
    def new_network(cls, config: sections.Scm, role: str, facts: Facts) -> nn.Module:
        """The logarithm of the weight of each noise level."""
        return Uncertainty()

    @classmethod
    def steps(cls, config: sections.Scm, clock: Clock) -> tuple[Step, ...]:
        """One step of student and weight on one batch of images."""
        dropout = ("student",) if config.dropout else ()
        return (Step("student", ("student", "uncertainty"), (Part("images", config.batch_size, "images"),), dropout),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels, and noise."""
        config, num = self.config, self.config.batch_size
        sigma = log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
        rank = torch.special.ndtr((sigma.log() - config.sigma_log_mean) / config.sigma_log_std)
        bins = (rank * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        return {"images": {"sigma": sigma, "bin": bins, "noise": self.noise(num, random)}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted squared difference of the student's change and the tangent."""
        image, sigma, label = rows["image"], rows["sigma"], rows["label"]
        noised = image + per_sample(sigma, image) * rows["noise"]
        before, tangent = self.tangent(noised, image, sigma, label, warmup(self.config, clock))
        norm = tangent.flatten(1).norm(dim=1)
        self.replay()
        x0 = self.networks["student"](noised, sigma, label)
        scale = per_sample(self.facts.sigma_data * self._sine(sigma), image)
        change = (before - x0) / scale - tangent / per_sample(norm + self.config.c, image)
        error = change.square().flatten(1).mean(1) / sigma
        weight = self.networks["uncertainty"](sigma)
        loss = (weight.exp() * error - weight).mean()
        log.scalar("loss/consistency", loss, len(image))
        log.binned("consistency/tangent", norm, rows["bin"], NUM_BINS)
        log.mean("weight/log", weight.detach())
        return loss

    def tangent(
        self, noised: Tensor, image: Tensor, sigma: Tensor, label: Tensor, full: float
    ) -> tuple[Tensor, Tensor]:
        """D- and g (B, C, H, W) of noised images at levels sigma (B,); `full` is q."""
        with torch.no_grad():
            real = self.networks["teacher"](noised, sigma, label) if "teacher" in self.config.roles() else image
            x0, derivative = forward_derivative(
                lambda points, levels: self.networks["student"](points, levels, label),
                (noised, sigma),
                (noised - real, sigma),
            )
            sine = self._sine(sigma)
            start = per_sample(1 - sine.square(), image) * (x0 - real)
            return x0, torch.lerp(start, derivative, full) / per_sample(sine, image)

    def sampling(self) -> Calls:
        """One call at the highest level, or several with fresh noise between them."""
        return Calls(self.config.calls)

    def _sine(self, sigma: Tensor) -> Tensor:
        """sin t (B,)."""
        return sigma / (sigma.square() + self.facts.sigma_data**2).sqrt()


def warmup(config: sections.Scm, clock: Clock) -> float:
    """q of an update."""
    return min(clock.update / config.tangent_warmup, 1.0) if config.tangent_warmup else 1.0


METHOD = Scm
