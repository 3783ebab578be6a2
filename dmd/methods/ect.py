"""Easy Consistency Tuning (Geng et al. 2024, arXiv 2406.14548): a denoiser becomes a consistency model step by step.

The student is the denoiser D itself, which is the identity at sigma 0. For an image x, noise n and two levels r < t,

    w |D(x + t n; t) - sg D(x + r n; r)|,   sg without gradient, the norm over all values of an image,

with ln t ~ N(mean, std^2) and w = 1 / (t - r), or the network's own weight at t. The lower level

    r = max(0, t (1 - n(t) / q^(stage + 1))),   n(t) = 1 + k sigmoid(-b t),

is near 0 in the first stage, and D(x; 0) = x: there the loss is denoising, which the student's start has learned. Each
stage divides the gap t - r by q, and so approaches the condition that D is constant along a trajectory. With the
defaults r is 0 in the first stage for t below ln 7.

There is no teacher: its weights are the student's start. Dropout has the same mask in both passes. With c above 0 the
norm is the pseudo-Huber distance (|x - y|^2 + c^2)^1/2 - c; with c = 0 a difference of 0 has the gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.methods import ect as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.distances import pseudo_huber
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import log_normal_sigmas

NUM_BINS = 10  # of noise levels in the log; equally many are drawn in each
LOWEST = 1e-3  # level of passes whose result is not used, since r is 0


@dataclass
class Ect(Method[sections.Ect]):
    """ECT."""

    @classmethod
    def steps(cls, config: sections.Ect, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        dropout = ("student",) if config.dropout else ()
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),), dropout),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """The upper level t, the gap t - r, and noise."""
        config, num = self.config, self.config.batch_size
        sigma = log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
        rank = torch.special.ndtr((sigma.log() - config.sigma_log_mean) / config.sigma_log_std)
        rows = {"sigma": sigma, "gap": gap(sigma, config, stage(config, clock))}
        rows["bin"] = (rank * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        rows["noise"] = self.noise(num, random)
        return {"images": rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted distance of the student at the upper level to itself at the lower one."""
        student, image, label, noise = self.networks["student"], rows["image"], rows["label"], rows["noise"]
        assert isinstance(student, Denoiser)
        sigma, lower = rows["sigma"], rows["sigma"] - rows["gap"]
        with torch.no_grad():
            safe = torch.where(lower > 0, lower, LOWEST)
            x0 = student(image + per_sample(lower, image) * noise, safe, label)
            target = torch.where(per_sample(lower > 0, image), x0, image)
        self.replay()
        x0 = student(image + per_sample(sigma, image) * noise, sigma, label)
        distance = pseudo_huber(x0, target, self.config.c)
        weight = rows["gap"].reciprocal() if self.config.weighting == "gap" else student.loss_weight(sigma)
        loss = (weight * distance).mean()
        log.scalar("stage", sigma.new_tensor(float(stage(self.config, clock))), len(image))
        log.scalar("loss/consistency", loss, len(image))
        log.binned("consistency/gap", (x0 - target).abs().flatten(1).mean(1), rows["bin"], NUM_BINS)
        return loss

    def sampling(self) -> Calls:
        """One call at the highest level, or several with fresh noise between them."""
        return Calls(self.config.calls)


def stage(config: sections.Ect, clock: Clock) -> int:
    """Number of the stage, from 0."""
    return clock.update // config.stage_updates


def gap(sigma: Tensor, config: sections.Ect, stage: int) -> Tensor:
    """t - r (B,) of upper levels t: t n(t) / q^(stage + 1), or t itself if that is less."""
    wide = 1 + config.k * torch.sigmoid(-config.b * sigma)
    return sigma * (wide * math.pow(config.q, -(stage + 1))).clamp(max=1.0)


METHOD = Ect
