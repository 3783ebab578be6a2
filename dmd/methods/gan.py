"""A conditional generative adversarial network (Goodfellow et al. 2014, arXiv 1406.2661) of the teacher's architecture.

It stands for the published GANs, whose architectures are others. The student x = D(scale z; sigma) is one call of a
denoiser; the discriminator is the encoder of another one, with a head. Both begin as the teacher. Images are judged
with noise of random levels, ln s ~ N(mean, std^2), and with their labels (Wang et al. 2023, arXiv 2206.02262). With the
logit l of an image, an update trains

    student          softplus(-l(x_s)),
    discriminator    softplus(l(x_s)) + softplus(-l(y_s)), first on the student's images; y is real,

and every `r1_every`-th update adds r1_every r1 / 2 |d l(y_s) / d y_s|^2 (Mescheder et al. 2018; Karras et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.config.methods import gan as sections
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.methods.parts import discriminator
from dmd.methods.parts.level_table import with_noise
from dmd.models.student_calls import Calls
from dmd.sampling.noise import log_normal_sigmas


@dataclass
class Gan(Method[sections.Gan]):
    """A GAN."""

    @classmethod
    def new_network(cls, config: sections.Gan, role: str, facts: Facts) -> nn.Module:
        """The head that makes logits."""
        return discriminator.new_head(facts.network)

    @classmethod
    def steps(cls, config: sections.Gan, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of the discriminator, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, sections.DiscriminatorPhase)
        more = [Part(f"noise{number}", size, "noise") for number in range(1, phase.discriminator_updates)]
        generated = [Part("carried", size, carries="noise"), *more]
        images, trains = Part("images", size, "images"), ("discriminator", "head")
        return (
            Step("student", ("student",), (Part("noise", size, "noise"),)),
            *(Step("discriminator", trains, (part, images)) for part in generated),
        )

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels and noise, with which images are judged."""
        config, num, drawn = self.config, self.config.batch_size, {}
        for part in step.parts:
            sigma = log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
            drawn[part.name] = {"sigma": sigma, "level_noise": self.noise(num, random)}
        return drawn

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's loss, or the discriminator's on generated or on real images."""
        if part.stream == "images":
            r1 = self.config.r1 * self.config.r1_every if clock.update % self.config.r1_every == 0 else 0.0
            noised = with_noise(rows["image"], rows["level_noise"], rows["sigma"])
            return discriminator.loss_of_real_images(
                self.networks["head"], self.denoiser("discriminator"), noised, rows["label"], r1=r1, log=log
            )
        if step.name == "student":
            image = self.generate(rows)
            rows["generated"] = image.detach()
            loss = discriminator.realistic(self._logits(image, rows))
            log.scalar("loss/student", loss, len(image))
            log.spread("generated", image)
            return loss
        if "generated" not in rows:
            with torch.no_grad():
                rows["generated"] = self.generate(rows)
        logits = self._logits(rows["generated"], rows)
        log.mean("gan/generated", logits.detach())
        return discriminator.generated(logits)

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return Calls((self.config.sigma,))

    def _logits(self, image: Tensor, rows: Rows) -> Tensor:
        noised = with_noise(image, rows["level_noise"], rows["sigma"])
        return discriminator.logits(self.networks["head"], self.denoiser("discriminator"), noised, rows["label"])


METHOD = Gan
