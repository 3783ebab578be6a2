"""Diff-Instruct (Luo et al. 2023, arXiv 2305.18455): the KL divergence, integrated over noise levels.

The student x = G(z) = D(scale z; sigma) is one call of a denoiser and learns from noise alone. T is the teacher, K the
fake denoiser that follows the student, both at x_s = x + s n with ln s ~ N(mean, std^2). An update trains

    fake       lambda(s) |K(x_s; s) - x|^2, x without gradient,
    student    (K(x_s; s) - T(x_s; s)) . x, with K - T as a constant,

in this order. The student's gradient is s^2 times that of KL(q_s | p_s), the divergence of its noised images from those
of the teacher: DMD's matching gradient with weight sigma^2/alpha, without the normaliser of its Eq. 8. Losses are means
over pixels where the authors take sums; this factor does not change Adam's steps, but `gradient_clip` depends on it.
Networks run without dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import FakePhase
from dmd.config.methods import diff_instruct as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import NUM_BINS, Noised
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import log_normal_sigmas


@dataclass
class DiffInstruct(Method[sections.DiffInstruct]):
    """Diff-Instruct."""

    @classmethod
    def steps(cls, config: sections.DiffInstruct, clock: Clock) -> tuple[Step, ...]:
        """Steps of the fake denoiser, then one of the student, each on fresh noise."""
        phase = clock.phase.config
        assert isinstance(phase, FakePhase)
        noise = (Part("noise", config.batch_size, "noise"),)
        return (*[Step("fake", ("fake",), noise)] * phase.fake_updates, Step("student", ("student",), noise))

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels, and noise."""
        config, num = self.config, self.config.batch_size
        sigma = log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
        return {"noise": {"sigma": sigma, "level_noise": self.noise(num, random)}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The fake denoiser's denoising loss on generated images, or the student's matching loss."""
        fake, sigma, label = self.denoiser("fake"), rows["sigma"], rows["label"]
        with torch.set_grad_enabled(step.name == "student"):
            image = self.generate(rows)
        noised = torch.addcmul(image.detach(), rows["level_noise"], per_sample(sigma, image))
        with torch.set_grad_enabled(step.name == "fake"):
            fake_x0 = fake(noised, sigma, label)
        if step.name == "fake":
            loss = denoising_loss(fake_x0, image, weight=fake.loss_weight(sigma))
            log.scalar("loss/fake", loss, len(image))
            return loss
        with torch.no_grad():
            real_x0 = self.denoiser("teacher")(noised, sigma, label)
        loss = logged_matching_loss(
            image,
            Noised(noised, sigma, torch.ones_like(sigma)),
            real_x0,
            fake_x0,
            weighting="sigma2/alpha",
            alpha_factor=False,
            bins=self._bins(sigma),
            log=log,
        )
        log.spread("generated", image)
        return loss

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return Calls((self.config.sigma,))

    def _bins(self, sigma: Tensor) -> Tensor:
        """The bin of the log of each level (B,); each bin is as likely as any other."""
        config = self.config
        share = torch.special.ndtr((sigma.log() - config.sigma_log_mean) / config.sigma_log_std)
        return (share * NUM_BINS).long().clamp(max=NUM_BINS - 1)


METHOD = DiffInstruct
