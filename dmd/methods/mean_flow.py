"""MeanFlow (Geng et al. 2025, arXiv 2505.13447), distilled from a teacher, in variance-exploding coordinates.

At flow time t the paper has z = (1 - t) x_0 + t n and the velocity v(z, t) of the ODE. The student learns the mean
velocity between times r and t, u(z, r, t) = (z_t - z_r) / (t - r), from the identity

    u = v - (t - r) du/dt,   d/dt along the ODE,

so that z_r = z - (t - r) u takes one call. Here x = z / (1 - t) has the noise level s = t / (1 - t). The denoiser D of
a velocity is x_0 = z - t v, and the student is a denoiser g = z - t u with a second time r as input: a DDIM step with g
from s to the level r / (1 - r) ends at z_r. For g the identity is

    g = r/t D + (1 - r/t) g - (t - r) (1 + s)^2 dg/ds.

The right side without gradient is the target; D is the teacher's x0, or with `teach: training` the image. dg/ds is the
derivative of the student along dx/ds = (x - D) / s, by forward-mode differentiation. An update draws levels with
ln s ~ N(mean, std^2), which is a logit-normal t; the larger of two is t, and for a fraction of images r = t, where the
target is D. The loss is w |u - target|^2 = w |g - target|^2 / t^2 over all values of an image, w = 1 / (e + c)^p with
the error e itself, without gradient.

The student starts as the teacher, since the embedding of r starts at zero. It draws in one call with r = 0, or in
several, each with the r of the next one. Value and derivative come from one pass, the gradient from a second one, with
the same dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.methods import mean_flow as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.forward_derivative import forward_derivative
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import log_normal_sigmas

NUM_BINS = 10  # of times t in the log


@dataclass
class MeanFlow(Method[sections.MeanFlow]):
    """MeanFlow."""

    @classmethod
    def steps(cls, config: sections.MeanFlow, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        dropout = ("student",) if config.dropout else ()
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),), dropout),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Two noise levels, and noise."""
        config, num = self.config, self.config.batch_size
        levels = log_normal_sigmas(
            2 * num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random
        ).clamp(max=config.calls[0])
        lower, sigma = levels.reshape(2, num).sort(dim=0).values
        equal = torch.rand(num, generator=random) < config.equal
        noise = self.noise(num, random)
        return {"images": {"sigma": sigma, "end": torch.where(equal, sigma, lower), "noise": noise}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted squared error of the mean velocity."""
        student, image, label = self.networks["student"], rows["image"], rows["label"]
        sigma, end = rows["sigma"], rows["end"]
        noised = image + per_sample(sigma, image) * rows["noise"]
        target = self.target(noised, image, sigma, end, label)
        self.replay()
        x0 = student(noised, sigma, label, end=end)
        time = sigma / (1 + sigma)
        error = (x0 - target).square().flatten(1).sum(1) / time.square()
        loss = ((error.detach() + self.config.c) ** -self.config.power * error).mean()
        log.scalar("loss/mean-flow", loss, len(image))
        bins = (time * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        log.binned("mean-flow/gap", (x0 - target).detach().abs().flatten(1).mean(1), bins, NUM_BINS)
        return loss

    def target(self, noised: Tensor, image: Tensor, sigma: Tensor, end: Tensor, label: Tensor) -> Tensor:
        """The student's target x0 (B, C, H, W) of noised images at levels sigma (B,), for steps to levels end (B,)."""
        with torch.no_grad():
            real = self.networks["teacher"](noised, sigma, label) if "teacher" in self.config.roles() else image
            time, end_time = sigma / (1 + sigma), end / (1 + end)
            change = (time - end_time) * (1 + sigma).square()
            direction = per_sample(change / sigma, image) * (noised - real)
            x0, derivative = forward_derivative(
                lambda points, levels: self.networks["student"](points, levels, label, end=end),
                (noised, sigma),
                (direction, change),
            )
            return torch.lerp(x0, real, per_sample(end_time / time, image)) - derivative

    def sampling(self) -> Calls:
        """One call at the highest level, or several along the ODE."""
        return Calls(self.config.calls, between="ode", map="mean-flow")


METHOD = MeanFlow
