"""Inductive Moment Matching (Zhou et al. 2025, arXiv 2503.07565), in variance-exploding coordinates.

The student makes a DDIM step from level t to any lower level s, with x0 from a network that gets s, too:

    f(x_t; t, s) = g + s/t (x_t - g),    g = D(x_t; t, s).

Steps from t and from a level r between s and t must lead to the same distribution. A group of M images x with noise n
has x_t = x + t n and x_r = x + r n, and with y_t = f(x_t; t, s), y_r = sg f(x_r; r, s) the loss is the squared maximum
mean discrepancy of the two sets,

    w(t) mean over pairs i, j of k(y_t^i, y_t^j) + k(y_r^i, y_r^j) - k(y_t^i, y_r^j) - k(y_r^i, y_t^j),

with the kernel k(y, y') = exp(-v max(|y - y'|, 1e-8) / d) of images with d values; 1 / v = (1 - s/t) c_out(t) is the
factor of the network's raw output in y_t. With one image in a group and k = -|y - y'|^2 this is a consistency loss.

The paper's paths are (1 - u) x + u n with noise n of deviation sigma_data, so the time u of level t has
u / (1 - u) = e with e = t / sigma_data. The times of t and s are uniform, that of s below that of t, and with
alpha = 1 - u and the log-SNR l = -2 ln e

    w = 1/2 sigmoid(b - l) (-dl/du) alpha^a / (alpha^2 + u^2).

r is t less a constant gap, but at least s. At first the second time changes nothing, and the student is the denoiser
that it starts from. Images of a group have labels of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT
from dmd.config.methods import imm as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls

NUM_BINS = 10  # of flow times of t in the log
SMALLEST = 1e-8  # distance in the kernel
Kernel = Callable[[Tensor], Tensor]


@dataclass
class Imm(Method[sections.Imm]):
    """IMM."""

    @classmethod
    def steps(cls, config: sections.Imm, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of groups of images."""
        dropout = (STUDENT,) if config.dropout else ()
        part = Part("images", config.batch_size, "images", group=config.particles)
        return (Step(STUDENT, (STUDENT,), (part,), dropout),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Three noise levels of each group, and noise of each image."""
        config, num, sigma_data = self.config, self.config.batch_size, self.facts.sigma_data
        first, last = (sigma / (sigma_data + sigma) for sigma in (config.sigma_min, config.calls[0]))
        position, below = torch.rand((2, num), generator=random, dtype=torch.float64)
        time = first + position * (last - first)
        end_time = first + below * (time - first)
        sigma, end = sigma_data * time / (1 - time), sigma_data * end_time / (1 - end_time)
        gap = (config.calls[0] - config.sigma_min) / 2**config.k
        levels = {"sigma": sigma, "lower": torch.maximum(sigma - gap, end), "end": end}
        noise = torch.randn((num, config.particles, *self.facts.shape), generator=random)
        return {"images": {name: each.float() for name, each in levels.items()} | {"noise": noise}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The weighted discrepancy of the student's groups from the upper level and from the lower one."""
        image, noise, sigma, end = rows["image"], rows["noise"], rows["sigma"], rows["end"]
        with torch.no_grad():
            target = self.step_to(end, image, noise, rows["lower"], rows["label"])
        self.replay()
        arrived = self.step_to(end, image, noise, sigma, rows["label"])
        factor = (1 - end / sigma) * self.denoiser(STUDENT).preconditioning(sigma).c_out.abs()
        scale = 1 / (factor.clamp(min=SMALLEST) * math.prod(self.facts.shape))
        values = discrepancy(arrived, target, lambda square: laplace(square, scale[:, None, None]))
        ratio = sigma / self.facts.sigma_data
        loss = (level_weight(ratio, a=self.config.a, b=self.config.b) * values).mean()
        log.scalar("loss/imm", loss, len(image))
        bins = (ratio / (1 + ratio) * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        log.binned("imm/discrepancy", values.detach(), bins, NUM_BINS)
        return loss

    def step_to(self, end: Tensor, image: Tensor, noise: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """f of groups of images (B, M, C, H, W) with noise of levels sigma (B,), to levels end (B,)."""
        num = image.shape[1]
        sigma, end = (each.repeat_interleave(num) for each in (sigma, end))
        clean = image.flatten(0, 1)
        noised = torch.addcmul(clean, noise.flatten(0, 1), per_sample(sigma, clean))
        x0 = self.denoiser(STUDENT)(noised, sigma, label.flatten(0, 1), end=end)
        return torch.lerp(x0, noised, per_sample(end / sigma, x0)).unflatten(0, (-1, num))

    def sampling(self) -> Calls:
        """One call at the highest level, or several along the student's own steps."""
        return Calls(self.config.calls, between="ode", map="mean-flow")


def discrepancy(ours: Tensor, theirs: Tensor, kernel: Kernel) -> Tensor:
    """The squared maximum mean discrepancy (B,) of sets of images (B, M, C, H, W), over all pairs.

    Args:
        kernel: k of squared distances (B, M, M).
    """
    ours, theirs = ours.flatten(2), theirs.flatten(2)

    def mean(some: Tensor, others: Tensor) -> Tensor:
        square = (some[:, :, None] - others[:, None]).square().sum(-1)
        return kernel(square).mean((1, 2))

    return mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)


def laplace(square: Tensor, scale: Tensor) -> Tensor:
    """exp(-scale max(|y - y'|, 1e-8)) of squared distances; the gradient at distance 0 is 0."""
    return (-scale * square.clamp(min=SMALLEST**2).sqrt()).exp()


def level_weight(ratio: Tensor, *, a: float, b: float) -> Tensor:
    """w, by e = t / sigma_data (B,)."""
    time = ratio / (1 + ratio)
    alpha = 1 - time
    log_snr = -2 * ratio.log()
    slope = 2 / (time * alpha)  # -dl/du of l = 2 ln((1 - u) / u)
    return torch.sigmoid(b - log_snr) / 2 * slope * alpha**a / (alpha.square() + time.square())


METHOD = Imm
