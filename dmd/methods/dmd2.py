"""DMD2 (Yin et al. 2024, arXiv 2405.14867): distribution matching without pairs, for one or several calls.

The student draws as `Calls` says: call k maps the image at level sigma_k to x0, and fresh noise takes x0 to the next
level. An update draws k, makes the calls before k without gradient (backward simulation, Section 4.4), and trains

    student   on x0 of call k, by the matching gradient of DMD (Yin et al. 2023, Eqs. 7 and 8),
    fake      on x0 of the student by the denoising loss, `fake_updates` times (the two time-scale rule, Section 4.2).

With images, both have a GAN loss, too (Section 4.3; see `dmd.methods.parts.discriminator`). Guidance of the real score
can have noise levels of its own (`decoupled`; see `dmd.methods.parts.decoupled_guidance`). The fake denoiser sees the
images of all calls, so that the losses hold for their mixture, not for each call alone. With `levels_by_call` each call
has the noise levels from the next call's level up to its own, as in TDM (Luo et al. 2025, arXiv 2503.06674), and so its
own target: fresh noise hides from the next call what lies below.

With one call, one update of the fake denoiser and no GAN loss this is `dmd` without regression, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.config.methods import dmd2 as sections
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.methods.parts import discriminator
from dmd.methods.parts.call_times import calls_at
from dmd.methods.parts.decoupled_guidance import logged_decoupled_loss
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import Noised, noise_levels
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.student_calls import Calls


@dataclass
class Dmd2(Method[sections.Dmd2]):
    """DMD2.

    Attributes:
        calls: how the student is sampled.
        table: the noise levels of the losses.
        ranges: first index of the noise levels of each call, and the index after the last one.
        guidance_levels: first index of the guidance term's levels, and the index after the last one, for each call; ()
            if there is no such term.
    """

    def __post_init__(self) -> None:
        self.calls = calls_at(self.config.times, self.config.calls, self.facts)
        self.table = noise_levels(self.config.levels, self.networks["teacher"], self.facts, self.device)
        self.ranges = tuple(self._ranges())
        self.guidance_levels = tuple(self._guidance_levels()) if self.config.guidance_term else ()

    @classmethod
    def new_network(cls, config: sections.Dmd2, role: str, facts: Facts) -> nn.Module:
        """The head of the GAN loss."""
        return discriminator.new_head(facts.network)

    @classmethod
    def steps(cls, config: sections.Dmd2, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of the fake denoiser, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, sections.Dmd2Phase)
        images = (Part("images", size, "images"),) if config.gan else ()
        trains = ("fake", "head") if config.gan else ("fake",)
        first = Step("student", ("student",), (Part("noise", size, "noise"),))
        carried = Step("fake", trains, (Part("carried", size, carries="noise"), *images))
        more = [
            Step("fake", trains, (Part(f"noise{number}", size, "noise"), *images))
            for number in range(1, phase.fake_updates)
        ]
        return (first, carried, *more)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels and noise of the losses, and for new images the trained call and the noise before it.

        One call is trained in a step, so that all images take the same number of passes.
        """
        part, num = step.parts[0], self.config.batch_size
        level = torch.randint(*self._drawn(step), (num,), generator=random)
        rows = {"level": level, "level_noise": self.noise(num, random)}
        call = 0
        if part.carries is None and self.config.calls > 1:
            call = int(torch.randint(self.config.calls, (), generator=random))
            rows["fresh"] = torch.randn((num, call, *self.facts.shape), generator=random)
        if step.name == "student" and self.guidance_levels:
            rows["guidance_level"] = torch.randint(*self.guidance_levels[call], (num,), generator=random)
            rows["guidance_noise"] = self.noise(num, random)
        drawn = {part.name: rows}
        if self.config.gan:
            for judged in step.parts:
                level = torch.randint(len(self.table), (num,), generator=random)
                drawn.setdefault(judged.name, {}).update(gan_level=level, gan_noise=self.noise(num, random))
        return drawn

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's matching and GAN losses; the fake denoiser's denoising loss, and the head's on both images."""
        if part.stream == "images":
            return self._real_loss(rows, log)
        label, fake = rows["label"], self.denoiser("fake")
        rows["level"] = self._level(step, rows)
        if "generated" not in rows:  # a part that carries another one has its images
            with torch.set_grad_enabled(step.name == "student"):
                image = self.generate(rows)
            rows["generated"] = image.detach()
        noised = self.table.noised(rows["generated"], rows["level_noise"], rows["level"])
        with torch.set_grad_enabled(step.name == "fake"):
            fake_x0 = fake(noised.image, noised.sigma, label)
        if step.name == "fake":
            loss = denoising_loss(fake_x0, rows["generated"], weight=fake.loss_weight(noised.sigma))
            log.scalar("loss/fake", loss, len(label))
            return loss if self.config.gan is None else loss + self._generated_loss(rows, self.config.gan, log)
        loss = self._matching(image, noised, fake_x0, rows, log)
        log.spread("generated", image)
        return loss if self.config.gan is None else loss + self._student_loss(image, rows, self.config.gan, log)

    def generate(self, rows: Rows) -> Tensor:
        """x0 of the trained call (B, C, H, W); gradients reach that call alone."""
        number = _number(rows)
        student, noise, label = self.networks["student"], rows["noise"], rows["label"]
        with torch.no_grad():
            image = self.calls.before(number, student, noise, label, lambda done: rows["fresh"][:, done])
        return self.calls.x0(student, image, noise.new_full(noise.shape[:1], self.calls.sigmas[number]), label)

    def sampling(self) -> Calls:
        """The calls that are trained."""
        return self.calls

    def _level(self, step: Step, rows: Rows) -> Tensor:
        """The drawn indices of noise levels (B,), moved from the range of all calls to that of the trained call.

        Each index of a call's range is as likely as any other, up to one part in the number of drawn ones.
        """
        first, stop = self._drawn(step)
        low, high = self.ranges[_number(rows)]
        low, high = max(low, first), min(high, stop)
        return low + (rows["level"] - first) * (high - low) // (stop - first)

    def _drawn(self, step: Step) -> tuple[int, int]:
        """The first index of the noise levels that a step draws, and the index after the last one."""
        levels = self.config.levels
        return (levels.min_index, levels.max_index + 1) if step.name == "student" else (0, len(self.table))

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """All noise levels for each call, or with `levels_by_call` those that only this call has."""
        sigmas = (*self.calls.sigmas, 0.0)
        below = [int((self.table.sigmas < sigma).sum()) for sigma in sigmas]
        below[0] = len(self.table)  # the first call's levels go up to the highest
        for number, (stop, first) in enumerate(zip(below, below[1:], strict=False)):
            if not self.config.levels_by_call:
                yield 0, len(self.table)
                continue
            if min(stop, self.config.levels.max_index + 1) <= max(first, self.config.levels.min_index):
                raise ValueError(
                    f"distill.method.levels_by_call: levels {self.config.levels.min_index}.."
                    f"{self.config.levels.max_index} of distill.method.levels have none between sigma "
                    f"{sigmas[number + 1]:.4g} and {sigmas[number]:.4g}, call {number + 1}: widen that range, or set "
                    "other times"
                )
            yield first, stop

    def _matching(self, image: Tensor, noised: Noised, fake_x0: Tensor, rows: Rows, log: StepLog) -> Tensor:
        """The matching loss, with guidance at the same noise levels or at its own."""
        config, label, teacher = self.config, rows["label"], self.denoiser("teacher")
        weighting, bins = config.weighting, self.table.bins(rows["level"])
        weight = 1.0 if config.decoupled is None else config.decoupled.matching_weight
        if self.guidance_levels:
            guided = self.table.noised(rows["generated"], rows["guidance_noise"], rows["guidance_level"])
            return logged_decoupled_loss(
                image,
                noised,
                guided,
                label,
                teacher=teacher,
                fake_x0=fake_x0,
                guidance=config.guidance,
                matching_weight=weight,
                weighting=weighting,
                alpha_factor=config.alpha_factor,
                bins=(bins, self.table.bins(rows["guidance_level"])),
                log=log,
            )
        with torch.no_grad():
            real_x0 = teacher(noised.image, noised.sigma, label)
        return weight * logged_matching_loss(
            image,
            noised,
            real_x0,
            fake_x0,
            weighting=weighting,
            alpha_factor=config.alpha_factor,
            bins=bins,
            log=log,
        )

    def _guidance_levels(self) -> Iterator[tuple[int, int]]:
        """The range of the guidance term's levels for each call."""
        section, levels, key = self.config.decoupled, self.config.levels, "distill.method.decoupled"
        assert section is not None
        first = levels.min_index if section.min_index is None else section.min_index
        last = levels.max_index if section.max_index is None else section.max_index
        if last >= len(self.table):
            raise ValueError(f"{key}.max_index: {last} is beyond the {len(self.table)} noise levels")
        for number, sigma in enumerate(self.calls.sigmas):
            below = int((self.table.sigmas < sigma).sum()) if section.below_call else len(self.table)
            if below <= first:
                raise ValueError(
                    f"{key}.below_call: no noise level of indices {first}..{last} is below sigma {sigma:.4g} of call "
                    f"{number + 1}: lower min_index, or raise the level of that call"
                )
            yield first, min(last + 1, below)

    def _student_loss(self, image: Tensor, rows: Rows, gan: sections.Adversarial, log: StepLog) -> Tensor:
        """The student's part of the GAN loss, weighted."""
        loss = discriminator.realistic(self._logits(image, rows))
        log.scalar("loss/gan", loss, len(image))
        return gan.student_weight * loss

    def _generated_loss(self, rows: Rows, gan: sections.Adversarial, log: StepLog) -> Tensor:
        """The head's loss on generated images, weighted."""
        logits = self._logits(rows["generated"], rows)
        log.mean("gan/generated", logits.detach())
        return gan.fake_weight * discriminator.generated(logits)

    def _real_loss(self, rows: Rows, log: StepLog) -> Tensor:
        """The head's loss on real images, weighted, with R1."""
        gan = self.config.gan
        assert gan is not None
        noised = self.table.noised(rows["image"], rows["gan_noise"], rows["gan_level"])
        loss = discriminator.loss_of_real_images(
            self.networks["head"], self.denoiser("fake"), noised, rows["label"], r1=gan.r1, log=log
        )
        return gan.fake_weight * loss

    def _logits(self, image: Tensor, rows: Rows) -> Tensor:
        noised = self.table.noised(image, rows["gan_noise"], rows["gan_level"])
        return discriminator.logits(self.networks["head"], self.denoiser("fake"), noised, rows["label"])


def _number(rows: Rows) -> int:
    """The trained call: `fresh` (B, k, C, H, W) has noise for each call before it. The CPU knows a shape at once."""
    return rows["fresh"].shape[1] if "fresh" in rows else 0


METHOD = Dmd2
