"""Consistency models: distillation and training (Song et al. 2023, arXiv 2303.01469, Algorithms 2 and 3).

The student's map f(x; sigma) leads from any level of the probability flow ODE to its end: f(x; sigma_min) = x, and f is
constant along a trajectory. For neighbouring levels sigma_i < sigma_{i+1} and x_{i+1} = x + sigma_{i+1} n,

    loss   w d(f(x_{i+1}; sigma_{i+1}), f-(x_i; sigma_i)),   f- the target, without gradient
    distillation   (Eq. 7)   x_i comes from x_{i+1} by one step of the teacher's ODE
    training       (Eq. 10)  x_i = x + sigma_i n: no teacher

Improved training (Song and Dhariwal 2023, arXiv 2310.14189) is consistency training whose target is the student itself,
with the pseudo-Huber d, w = 1 / (sigma_{i+1} - sigma_i), log-normal noise levels, and a number of levels that doubles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmd.config.methods import consistency as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.distances import pseudo_huber
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ascending_sigmas

NUM_BINS = 10  # of noise levels in the log
HUBER_PER_ROOT = 0.00054  # c divided by the square root of the number of values (Song and Dhariwal 2023, Table 1)


@dataclass
class Consistency(Method[sections.Consistency]):
    """Consistency distillation and training.

    Attributes:
        calls: how the student is sampled, with the map that is trained.
        sigma_min, sigma_max: the lowest and the highest level.
    """

    def __post_init__(self) -> None:
        config = self.config
        last = self.facts.highest(config.levels.sigma_max, key="distill.method.levels.sigma_max")
        if self.facts.text:
            raise ValueError("method consistency cannot train a text-conditional denoiser: it needs class labels")
        self.sigma_min, self.sigma_max = self.facts.levels(config.levels.sigma_min, last, key="distill.method.levels")
        self.calls = Calls(
            config.calls or (self.sigma_max,), between="noise", map="consistency", sigma_min=self.sigma_min
        )

    @classmethod
    def steps(cls, config: sections.Consistency, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images; dropout is off in the teacher."""
        dropout = tuple(role for role in config.roles() if role != "teacher") if config.dropout else ()
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),), dropout),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Neighbouring levels, and noise."""
        levels, num = self.config.levels, self.config.batch_size
        sigmas = self.sigmas(number_of_levels(levels.number, clock))
        index = torch.multinomial(level_probabilities(sigmas, levels), num, replacement=True, generator=random)
        noise = self.noise(num, random)
        bins = index * NUM_BINS // (len(sigmas) - 1)
        neighbours = {"sigma": sigmas[index + 1].float(), "lower_sigma": sigmas[index].float()}
        return {"images": {**neighbours, "noise": noise, "bin": bins}}

    def sigmas(self, num: int) -> Tensor:
        """Levels, ascending, float64 (num,)."""
        levels = self.config.levels
        return ascending_sigmas(num, self.sigma_min, self.sigma_max, levels.rho)

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted distance of the student at one level to the target at the level below."""
        image, label, noise = rows["image"], rows["label"], rows["noise"]
        sigma, lower = rows["sigma"], rows["lower_sigma"]
        noised = image + per_sample(sigma, image) * noise
        with torch.no_grad():
            if self.config.teach == "training":
                neighbour = image + per_sample(lower, image) * noise
            else:
                neighbour = teacher_step(
                    self.networks["teacher"], noised, label, sigma, lower, heun=self.config.solver == "heun"
                )
            target = self.map("target" if self.config.target_decay else "student", neighbour, lower, label)
        self.replay()
        x0 = self.map("student", noised, sigma, label)
        log.scalar("levels", sigma.new_tensor(number_of_levels(self.config.levels.number, clock)), len(image))
        log.binned("consistency/gap", (x0 - target).abs().flatten(1).mean(1), rows["bin"], NUM_BINS)
        loss = self._distance(x0, target, sigma - lower)
        log.scalar("loss/consistency", loss, len(image))
        return loss

    def map(self, role: str, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """f(image; sigma) of the network of a role."""
        return self.calls.x0(self.networks[role], image, sigma, label)

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """The target network follows the student."""
        if self.config.target_decay:
            self.networks.follow("target", "student", target_decay(self.config, clock))

    def sampling(self) -> Calls:
        """One call at the highest level, or several with fresh noise between them (Algorithm 1)."""
        return self.calls

    def _distance(self, x0: Tensor, target: Tensor, gap: Tensor) -> Tensor:
        """Mean over images of w d(x0, target)."""
        metric = self.config.metric
        if not self.config.plain:
            (distance,) = self.distances.values()
            return distance(x0, target)
        if isinstance(metric, sections.PseudoHuberDistance):
            distances = pseudo_huber(x0, target, metric.c or HUBER_PER_ROOT * math.sqrt(math.prod(self.facts.shape)))
        else:
            distances = (x0 - target).square().flatten(1).mean(1)
        return (distances / gap if self.config.weighting == "gap" else distances).mean()


def number_of_levels(number: sections.FixedNumber | sections.RootNumber | sections.DoublingNumber, clock: Clock) -> int:
    """N(k) of update k out of K.

    root: ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al. 2023, Appendix C); doubling:
    min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1)) (Song and Dhariwal 2023, Table 1).
    """
    if isinstance(number, sections.FixedNumber):
        return number.count
    first, last = number.first, number.last
    if isinstance(number, sections.RootNumber):
        square = clock.update * ((last + 1) ** 2 - first**2) / clock.total + first**2
        return math.ceil(math.sqrt(square) - 1) + 1
    every = max(math.floor(clock.total / (math.log2(last // first) + 1)), 1)
    doublings = min(clock.update // every, last.bit_length())  # more of them would exceed `last`
    return min(first * 2**doublings, last) + 1


def target_decay(config: sections.Consistency, clock: Clock) -> float:
    """mu(k) of the target network (Song et al. 2023, Appendix C)."""
    number = config.levels.number
    if config.target_schedule == "constant" or not isinstance(number, sections.RootNumber):
        return config.target_decay
    return math.exp(number.first * math.log(config.target_decay) / number_of_levels(number, clock))


def level_probabilities(sigmas: Tensor, levels: sections.ConsistencyLevels) -> Tensor:
    """Probabilities (N - 1,) of the pairs of neighbours among ascending levels (N,).

    Log-normal: proportional to erf((ln sigma_{i+1} - m) / (sqrt(2) s)) - erf((ln sigma_i - m) / (sqrt(2) s)) (Song and
    Dhariwal 2023, Table 1).
    """
    if levels.distribution == "uniform":
        return torch.full((len(sigmas) - 1,), 1 / (len(sigmas) - 1), dtype=torch.float64)
    scaled = (sigmas.log() - levels.sigma_log_mean) / (math.sqrt(2) * levels.sigma_log_std)
    mass = torch.erf(scaled).diff()
    return mass / mass.sum()


def teacher_step(teacher: Any, image: Tensor, label: Tensor, sigma: Tensor, lower: Tensor, *, heun: bool) -> Tensor:
    """One step of the probability flow ODE dx/dsigma = (x - D(x; sigma)) / sigma, from levels sigma (B,) to lower (B,).

    Euler's step, or Heun's, which takes the mean of the slopes at both ends.
    """
    change = per_sample(lower - sigma, image)
    slope = (image - teacher(image, sigma, label)) / per_sample(sigma, image)
    end = image + change * slope
    if not heun:
        return end
    end_slope = (end - teacher(end, lower, label)) / per_sample(lower, image)
    return image + change * (slope + end_slope) / 2


METHOD = Consistency
