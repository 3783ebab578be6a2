"""Moment matching (Salimans et al. 2024, arXiv 2406.04103, Algorithm 2): a stochastic student of several calls.

A student of k calls is an ancestral sampler with the levels t_1 > ... > t_k: call i makes x~ = D(x_t; t_i) of an image
x_t = x + t_i n, and the next image comes from the posterior of Gaussian noise,

    q(z_s | x_t, x~):   mean x~ + (s/t)^2 (x_t - x~),   variance s^2 (1 - s^2 / t^2).

It has the teacher's distribution if E[x~ | z_s] is the teacher's x0 at all levels s. An update draws real images x, a
call i, a level s between t_(i+1) and t_i, and z_s from the posterior; T is the teacher, K the fake denoiser:

    student   w(s) x~ . sg(K(z_s; s) - T(z_s; s)),
    fake      |K(z_s; s) - x~|^2 + |K(z_s; s) - T(z_s; s)|^2, with the network's weight.

The second term holds K near the teacher. K is best at (E[x~ | z_s] + T) / 2, so the gradient is half of what dmd2 has
with the same weight. The last call has s from sigma_min. Levels s are uniform in s^(1/rho), where the paper has uniform
times of its own noise schedule. The student's step comes first and the fake denoiser sees the same images again, at
another s, where the paper takes new ones. The paper's w(s) and learning rates could not be checked: the weights here
are those of method dmd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import FakePhase
from dmd.config.methods import moment_matching as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.call_times import calls_at
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import NUM_BINS, Noised
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls, ancestral


@dataclass
class MomentMatching(Method[sections.MomentMatching]):
    """Moment matching.

    Attributes:
        calls: how the student is sampled.
        sigmas, ends: level of each call, and the lowest level of its losses, float64 (calls,).
    """

    def __post_init__(self) -> None:
        config = self.config
        self.calls = calls_at(config.times, config.calls, self.facts, between="ancestral")
        lowest, _ = self.facts.levels(config.sigma_min, None, key="distill.method")
        if lowest >= self.calls.sigmas[-1]:
            raise ValueError(
                f"distill.method.sigma_min: {lowest:g} is not below the last call's level, {self.calls.sigmas[-1]:g}"
            )
        self.sigmas = torch.tensor(self.calls.sigmas, dtype=torch.float64, device=self.device)
        self.ends = torch.cat([self.sigmas[1:], self.sigmas.new_tensor([lowest])])

    @classmethod
    def steps(cls, config: sections.MomentMatching, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of the fake denoiser, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, FakePhase)
        more = [Part(f"images{number}", size, "images") for number in range(1, phase.fake_updates)]
        return (
            Step("student", ("student",), (Part("images", size, "images"),)),
            *(Step("fake", ("fake",), (part,)) for part in (Part("carried", size, carries="images"), *more)),
        )

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """The place of s between two calls and the posterior's noise; for new images their call and noise."""
        part, num = step.parts[0], self.config.batch_size
        rows = {"place": torch.rand(num, generator=random, dtype=torch.float64)}
        rows["posterior_noise"] = self.noise(num, random)
        if part.carries is None:
            rows["call"] = torch.randint(self.config.calls, (num,), generator=random)
            rows["noise"] = self.noise(num, random)
        return {part.name: rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's matching loss, or the fake denoiser's loss."""
        label, call, fake = rows["label"], rows["call"], self.denoiser("fake")
        sigma = self.sigmas[call].float()
        noised = rows["image"] + per_sample(sigma, rows["image"]) * rows["noise"]
        if "generated" not in rows:  # a part that carries another one has its images
            with torch.set_grad_enabled(step.name == "student"):
                x0 = self.calls.x0(self.networks["student"], noised, sigma, label)
            rows["generated"] = x0.detach()
        level = self.levels(call, rows["place"])
        state = ancestral(noised, rows["generated"], sigma, level, rows["posterior_noise"])
        with torch.set_grad_enabled(step.name == "fake"):
            fake_x0 = fake(state, level, label)
        with torch.no_grad():
            real_x0 = self.denoiser("teacher")(state, level, label)
        if step.name == "fake":
            weight = fake.loss_weight(level)
            loss = denoising_loss(fake_x0, rows["generated"], weight=weight)
            loss = loss + denoising_loss(fake_x0, real_x0, weight=weight)
            log.scalar("loss/fake", loss, len(label))
            return loss
        place = (self.config.calls - 1 - call + rows["place"]) / self.config.calls
        loss = logged_matching_loss(
            x0,
            Noised(state, level, torch.ones_like(level)),
            real_x0,
            fake_x0,
            weighting=self.config.weighting,
            alpha_factor=False,
            bins=(place * NUM_BINS).long().clamp(max=NUM_BINS - 1),
            log=log,
        )
        log.spread("generated", x0)
        return loss

    def levels(self, call: Tensor, place: Tensor) -> Tensor:
        """s of calls (B,), float32: place 0 is the lowest level of a call's losses, 1 the call's own level."""
        low, high = (levels[call] ** (1 / self.config.rho) for levels in (self.ends, self.sigmas))
        return ((low + place * (high - low)) ** self.config.rho).float()

    def sampling(self) -> Calls:
        """The calls that are trained."""
        return self.calls


METHOD = MomentMatching
