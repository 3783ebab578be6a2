"""UFOGen (Xu et al. 2023, arXiv 2311.09257): a diffusion GAN whose student draws in one call.

The student is trained on a few noise levels s_1 > s_2 > ... > s_N, and s_(N+1) is the lowest level. An update draws a
level s and the next lower one r for each real image y, and lets the student remove the noise, x = D(y + s n; s). The
discriminator, the encoder of another denoiser with a head, judges images at level r, with noise of their own:

    student          softplus(-l(x + r n'')) + g |x - y|^2 / s^2,
    discriminator    softplus(l(x + r n'')) + softplus(-l(y + r n')).

It does not see the image at level s. The squared error stands for the paper's KL term, which for Gaussian noise is a
constant plus |x - y|^2 / (2 (s^2 - r^2)); as in the authors' public code the error is that of the noise. Only the call
at the highest level is used to draw. Student and discriminator begin as the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.config.methods import ufogen as sections
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.methods.parts import discriminator
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import with_noise
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import karras_sigmas


@dataclass
class Ufogen(Method[sections.Ufogen]):
    """UFOGen.

    Attributes:
        sigmas: noise levels s_1 ... s_(N+1), descending, float32.
    """

    def __post_init__(self) -> None:
        config = self.config
        first, last = self.facts.levels(config.sigma_min, config.sigma_max, key="distill.method")
        levels = karras_sigmas(config.levels + 1, sigma_min=first, sigma_max=last, rho=config.rho)
        self.sigmas = levels.float().to(self.device)

    @classmethod
    def new_network(cls, config: sections.Ufogen, role: str, facts: Facts) -> nn.Module:
        """The head that makes logits."""
        return discriminator.new_head(facts.network)

    @classmethod
    def steps(cls, config: sections.Ufogen, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of the discriminator, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, sections.DiscriminatorPhase)
        more = [Part(f"images{number}", size, "images") for number in range(1, phase.discriminator_updates)]
        judged = (Part("carried", size, carries="images"), *more)
        return (
            Step("student", ("student",), (Part("images", size, "images"),)),
            *(Step("discriminator", ("discriminator", "head"), (part,)) for part in judged),
        )

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise of the images that are judged and, for new images, levels and noise of the student's input."""
        part, num = step.parts[0], self.config.batch_size
        rows = {"generated_noise": self.noise(num, random)}
        if step.name == "discriminator":
            rows["real_noise"] = self.noise(num, random)
        if part.carries is None:
            rows["level"] = torch.randint(self.config.levels, (num,), generator=random)
            rows["noise"] = self.noise(num, random)
        return {part.name: rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's GAN and denoising losses, or the discriminator's loss on generated and real images."""
        label, image, low = rows["label"], rows["image"], self.sigmas[rows["level"] + 1]
        if "generated" not in rows:
            sigma = self.sigmas[rows["level"]]
            with torch.set_grad_enabled(step.name == "student"):
                noised = torch.addcmul(image, rows["noise"], per_sample(sigma, image))
                generated = self.networks["student"](noised, sigma, label)
            rows["generated"] = generated.detach()
        judged, head = self.denoiser("discriminator"), self.networks["head"]
        if step.name == "student":
            logits = discriminator.logits(head, judged, with_noise(generated, rows["generated_noise"], low), label)
            realistic = discriminator.realistic(logits)
            error = denoising_loss(generated, image, weight=sigma.square().reciprocal())
            log.scalar("loss/gan", realistic, len(label))
            log.scalar("loss/denoising", error, len(label))
            log.spread("generated", generated)
            return realistic + self.config.reconstruction_weight * error
        logits = discriminator.logits(head, judged, with_noise(rows["generated"], rows["generated_noise"], low), label)
        log.mean("gan/generated", logits.detach())
        real = with_noise(image, rows["real_noise"], low)
        return discriminator.generated(logits) + discriminator.loss_of_real_images(
            head, judged, real, label, r1=self.config.r1, log=log
        )

    def sampling(self) -> Calls:
        """One call at the highest level."""
        return Calls((self.config.sigma_max,))


METHOD = Ufogen
