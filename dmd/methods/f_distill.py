"""f-distill (Xu et al. 2025, arXiv 2502.15681): distribution matching by any f-divergence.

Let p_s and q_s be the distributions of the teacher's and of the student's images with noise s, and r = p_s / q_s. For a
convex f with f(1) = 0, the divergence E_q f(r) has the gradient (Theorem 1)

    - E h(r) (score of p_s - score of q_s) . d x_s,         h(r) = r^2 f''(r),

which is DMD's matching gradient times h; h = 1 is the reverse KL divergence of DMD. `dmd.methods.parts.divergences` has
h of each divergence. The head of a GAN loss gives r: with its logit l for noised images, real ones against the
student's at the same level, r = exp(l) for the best head. An update trains

    student    the matching gradient of Yin et al. 2023, Eqs. 7 and 8, times h, and the GAN loss,
    fake       its denoising loss and the head's GAN loss, `fake_updates` times, first on the student's images.

The ratio is used as the authors do: l is clamped to +-10 and r to [0.1, 20]; r is divided by its mean among levels of
one of ten equal ranges of s, and h by its mean. These means are those of earlier updates: the mean of h that of the
update before, the means of r exponential averages with `ratio_decay`. No gradient passes through h.

For the reverse KL divergence this is dmd2 of one call with the head at the noise levels of the matching loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.config.methods import f_distill as sections
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.methods.parts import discriminator
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.divergences import DIVERGENCES, density_ratio
from dmd.methods.parts.level_table import Noised, noise_levels
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.student_calls import Calls

NUM_RANGES = 10  # of noise levels, for means of the ratio


@dataclass
class FDistill(Method[sections.FDistill]):
    """f-distill.

    Attributes:
        calls: how the student is sampled.
        table: the noise levels of the losses.
    """

    def __post_init__(self) -> None:
        self.calls = Calls((self.facts.highest(self.config.sigma, key="distill.method.sigma"),))
        self.table = noise_levels(self.config.levels, self.networks["teacher"], self.facts, self.device)
        self.buffers["ratio"] = torch.ones(NUM_RANGES, device=self.device)
        self.buffers["weight"] = torch.ones((), device=self.device)

    @classmethod
    def new_network(cls, config: sections.FDistill, role: str, facts: Facts) -> nn.Module:
        """The head of the GAN loss."""
        return discriminator.new_head(facts.network)

    @classmethod
    def steps(cls, config: sections.FDistill, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of fake denoiser and head, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, sections.FDistillPhase)
        images = Part("images", size, "images")
        generated = [
            Part("carried", size, carries="noise"),
            *(Part(f"noise{number}", size, "noise") for number in range(1, phase.fake_updates)),
        ]
        return (
            Step("student", ("student",), (Part("noise", size, "noise"),)),
            *(Step("fake", ("fake", "head"), (part, images)) for part in generated),
        )

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels and noise of generated images, and of real ones."""
        num, levels = self.config.batch_size, self.config.levels
        drawn = {}
        for part in step.parts:
            first, stop = (levels.min_index, levels.max_index + 1) if step.name == "student" else (0, len(self.table))
            level = torch.randint(first, stop, (num,), generator=random)
            drawn[part.name] = {"level": level, "level_noise": self.noise(num, random)}
        return drawn

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's matching and GAN losses; the fake denoiser's denoising loss, and the head's on both images."""
        gan, label, fake = self.config.adversarial, rows["label"], self.denoiser("fake")
        if part.stream == "images":
            noised = self.table.noised(rows["image"], rows["level_noise"], rows["level"])
            head = self.networks["head"]
            loss = discriminator.loss_of_real_images(head, fake, noised, label, r1=gan.r1, log=log)
            return gan.fake_weight * loss
        if step.name == "student":
            image = self.generate(rows)
            rows["generated"] = image.detach()
            return self._student_loss(image, rows, log)
        if "generated" not in rows:
            with torch.no_grad():
                rows["generated"] = self.generate(rows)
        noised = self.table.noised(rows["generated"], rows["level_noise"], rows["level"])
        fake_x0 = fake(noised.image, noised.sigma, label)
        loss = denoising_loss(fake_x0, rows["generated"], weight=fake.loss_weight(noised.sigma))
        log.scalar("loss/fake", loss, len(label))
        logits = discriminator.logits(self.networks["head"], fake, noised, label)
        log.mean("gan/generated", logits.detach())
        return loss + gan.fake_weight * discriminator.generated(logits)

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """Moves the means of ratio and weight towards those of this step; a range without images keeps its mean."""
        if step.name != "student":
            return
        ratio, decay = log.value("ratio/level"), self.config.ratio_decay
        mean = self.buffers["ratio"]
        mean.copy_(torch.where(ratio.isfinite(), decay * mean + (1 - decay) * ratio, mean))
        self.buffers["weight"].copy_(log.value("ratio/weight"))

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return self.calls

    def _student_loss(self, image: Tensor, rows: Rows, log: StepLog) -> Tensor:
        config, label, fake = self.config, rows["label"], self.denoiser("fake")
        noised = self.table.noised(image, rows["level_noise"], rows["level"])
        logits = discriminator.logits(self.networks["head"], fake, noised, label)
        noised = Noised(noised.image.detach(), noised.sigma, noised.alpha)
        with torch.no_grad():
            real_x0 = self.denoiser("teacher")(noised.image, noised.sigma, label)
            fake_x0 = fake(noised.image, noised.sigma, label)
        loss = logged_matching_loss(
            image,
            noised,
            real_x0,
            fake_x0,
            weighting=config.weighting,
            alpha_factor=config.alpha_factor,
            bins=self.table.bins(rows["level"]),
            log=log,
            weights=self._weights(logits.detach(), noised.sigma, log),
        )
        log.spread("generated", image)
        realistic = discriminator.realistic(logits)
        log.scalar("loss/gan", realistic, len(image))
        return loss + config.adversarial.student_weight * realistic

    def _weights(self, logits: Tensor, sigma: Tensor, log: StepLog) -> Tensor:
        """h of the ratio of each image (B,), with mean 1 over images and ratios with mean 1 at all levels."""
        ratio = density_ratio(logits)
        first, last = self.table.sigmas[0], self.table.sigmas[-1]
        ranges = ((sigma - first) / (last - first) * NUM_RANGES).long().clamp(max=NUM_RANGES - 1)
        log.binned("ratio/level", ratio, ranges, NUM_RANGES)
        weights = DIVERGENCES[self.config.divergence].weight(ratio / self.buffers["ratio"][ranges])
        log.mean("ratio/weight", weights)
        return weights / self.buffers["weight"]


METHOD = FDistill
