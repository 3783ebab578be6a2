"""BOOT: distillation without data by bootstrapping (Gu et al. 2023, arXiv 2306.05544), in variance-exploding form.

The signal of a point x_s of the teacher's path from noise n is y(s) = x_s - s n. It has the ODE dy/ds = (y - T(y + s n;
s)) / s (their Signal-ODE), where T is the teacher. The student gives the signal of any level from the noise alone,
g(n; s), and learns to take each step of that ODE from itself: for neighbouring levels s > s',

    target = s'/s y + (1 - s'/s) T(y + s n; s),   y = g(n; s) without gradient (Euler's step; Heun's is a choice)
    loss = | g(n; s') - target |^2 / (1 - s'/s)^2 + boundary_weight | g(n; s_max) - T(s_max n; s_max) |^2.

The division makes it the error of the slope dy/dln(s). The boundary says that the signal at the highest level is the
teacher's x0. So the path that is learned begins at s_max n + T(s_max n; s_max), not at s_max n, where y is 0. The image
is g(n; s_min): one call.

The student's network has the input of the highest level for all levels, and the condition of level s: g(n; s) =
c_skip s_max n + c_out F(c_in s_max n; condition of s), with the factors at s_max. A copy of the teacher fulfils the
boundary as it is. Levels are those of Karras et al. 2022, Eq. 5, and steps are drawn uniformly. We could not check the
paper's step, its weight of the boundary and its learning rate: the first two have no default here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.methods import boot as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss, weighted_errors
from dmd.methods.parts.joined_steps import heun_x0
from dmd.models.denoiser import per_sample, start_scale
from dmd.models.student_calls import Calls, signal
from dmd.sampling.noise import ascending_sigmas

NUM_BINS = 8  # of steps in the log


@dataclass
class Boot(Method[sections.Boot]):
    """BOOT.

    Attributes:
        highest, lowest: levels of the noise and of the image.
        sigmas: all levels, descending, float32 (levels,).
    """

    def __post_init__(self) -> None:
        config = self.config
        top = self.facts.highest(config.sigma_max, key="distill.method.sigma_max")
        self.lowest, self.highest = self.facts.levels(config.sigma_min, top, key="distill.method")
        ascending = ascending_sigmas(config.levels, self.lowest, self.highest, config.rho)
        self.sigmas = ascending.flip(0).float().to(self.device)

    @classmethod
    def steps(cls, config: sections.Boot, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on both losses."""
        parts = Part("noise", config.batch_size, "noise"), Part("boundary", config.boundary_batch_size, "noise")
        return (Step(STUDENT, (STUDENT,), parts),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Numbers of steps, drawn uniformly."""
        number = torch.randint(self.config.levels - 1, (self.config.batch_size,), generator=random)
        return {"noise": {"number": number}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The error of a step, or that at the highest level."""
        noise, label = rows["noise"], rows["label"]
        if part.name == "boundary":
            return self.config.boundary_weight * self._boundary(noise, label, log)
        sigma, following = self.sigmas[rows["number"]], self.sigmas[rows["number"] + 1]
        with torch.no_grad():
            begin = self.signal(noise, sigma, label)
            target = signal_step(
                self.networks[TEACHER], begin, noise, (sigma, following), label, heun=self.config.solver == "heun"
            )
        found = self.signal(noise, following, label)
        weight = (1 - following / sigma).square().reciprocal()
        errors = weighted_errors(found, target, weight=weight)
        loss = errors.mean()
        log.scalar("loss/boot", loss, len(noise))
        num_bins = min(NUM_BINS, len(self.sigmas) - 1)
        log.binned("loss/step", errors, rows["number"] * num_bins // (len(self.sigmas) - 1), num_bins)
        return loss

    def signal(self, noise: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """g(n; s) of unit noise (B, C, H, W) at levels (B,)."""
        student = self.networks[STUDENT]
        start = start_scale(student, self.highest) * noise
        return signal(student, start, torch.full_like(level, self.highest), label, level)

    def sampling(self) -> Calls:
        """One call: the signal at the lowest level."""
        return Calls((self.highest,), map="signal", sigma_min=self.lowest)

    def _boundary(self, noise: Tensor, label: Tensor, log: StepLog) -> Tensor:
        level = noise.new_full(noise.shape[:1], self.highest)
        with torch.no_grad():
            teacher = self.networks[TEACHER]
            target = teacher(start_scale(teacher, self.highest) * noise, level, label)
        loss = denoising_loss(self.signal(noise, level, label), target, weight=torch.ones_like(level))
        log.scalar("loss/boundary", loss, len(noise))
        return loss


def signal_step(
    teacher: Any, begin: Tensor, noise: Tensor, sigmas: tuple[Tensor, Tensor], label: Tensor, *, heun: bool
) -> Tensor:
    """A step of the Signal-ODE from signals at levels s (B,) to those at s' < s.

    Args:
        begin: signals at s, (B, C, H, W).
        noise: of the path, unit noise.
        sigmas: s and s', each (B,), above 0.
        heun: takes the mean of the slopes at both ends.
    """
    sigma, following = sigmas
    ratio = per_sample(following / sigma, begin)
    x0 = teacher(begin + per_sample(sigma, begin) * noise, sigma, label)
    if heun:
        end = torch.lerp(x0, begin, ratio)
        x0 = heun_x0(x0, teacher(end + per_sample(following, begin) * noise, following, label), sigma, following)
    return torch.lerp(x0, begin, ratio)


METHOD = Boot
