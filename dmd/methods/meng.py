"""Distillation of a guided teacher into one network (Meng et al. 2022, arXiv 2210.03142, stage 1).

With classifier-free guidance w, the teacher needs two passes, T_c with the condition and T_u without. The student's
network takes w as an input and gives the sum in one pass, for every w of a range:

    loss   l(s) | S(x + s n; s, w) - (T_u + w (T_c - T_u)) |^2,   w uniform, l(s) = max(1/s^2, 1).

The paper writes 1 + w for this w, which is 1 without guidance. Levels are those of its cosine schedule, whose signal
cos(pi t / 2) and noise sin(pi t / 2) make s = tan(pi t / 2), with t uniform up to the highest level. The embedding of w
starts at zero, so that the student starts as T_c.

The student is a denoiser at all noise levels. Stage 2 is progressive distillation of it, which keeps w: method
`progressive` in an experiment whose teacher is this student. Settings are those of progressive distillation
(Salimans and Ho 2022): Adam without weight decay, gradients clipped at 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.methods import meng as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import weighted_errors, x0_weight
from dmd.methods.parts.drawn_guidance import draw_guidance, guided_x0
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import karras_sigmas

NUM_BINS = 8  # of guidance in the log


@dataclass
class Meng(Method[sections.Meng]):
    """Guided distillation.

    Attributes:
        sigma_min, sigma_max: the lowest and the highest level.
    """

    def __post_init__(self) -> None:
        top = self.facts.highest(self.config.sigma_max, key="distill.method.sigma_max")
        self.sigma_min, self.sigma_max = self.facts.levels(self.config.sigma_min, top, key="distill.method")

    @classmethod
    def steps(cls, config: sections.Meng, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        return (Step(STUDENT, (STUDENT,), (Part("images", config.batch_size, config.data),)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels, noise and guidance."""
        num = self.config.batch_size
        first, last = math.atan(self.sigma_min), math.atan(self.sigma_max)
        angle = first + (last - first) * torch.rand(num, generator=random, dtype=torch.float64)
        noise = self.noise(num, random)
        guidance = draw_guidance(num, self.config.guidance.both, random)
        return {"images": {"sigma": angle.tan().float(), "noise": noise, "guidance": guidance}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted error of the student's x0 at a level, with a guidance."""
        student, image, label = self.denoiser(STUDENT), rows["image"], rows["label"]
        sigma, guidance = rows["sigma"], rows["guidance"]
        noised = image + per_sample(sigma, image) * rows["noise"]
        with torch.no_grad():
            target = guided_x0(self.denoiser(TEACHER), noised, sigma, label, guidance)
        x0 = student(noised, sigma, label, guidance=guidance)
        errors = weighted_errors(x0, target, weight=x0_weight(self.config.weighting, sigma, student))
        loss = errors.mean()
        log.scalar("loss/meng", loss, len(image))
        lowest, highest = self.config.guidance.both
        place = (guidance - lowest) / max(highest - lowest, 1e-6)
        bins = (place * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        log.binned("meng/guidance", errors, bins, NUM_BINS)
        return loss

    def sampling(self) -> Calls:
        """DDIM over levels of Karras et al. 2022."""
        sigmas = karras_sigmas(
            self.config.calls, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.config.rho
        )
        return Calls((float(self.sigma_max), *sigmas[1:].tolist()), between="ode")


METHOD = Meng
