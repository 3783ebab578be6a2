"""Distribution Matching Distillation (Yin et al. 2023, arXiv 2311.18828, Algorithms 1 to 3).

The student G(z) = D(scale z; sigma) is one call of a denoiser. One update trains it with

    matching     (Eqs. 7, 8)   the gradient w_t (fake_x0 - real_x0): descent leads from fake to real images
    regression   (Section 3.3) the distance of G(z) to the end of the teacher's ODE from the same z,

and then trains the fake denoiser on the generated images with the denoising loss (Eq. 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import PlannedPhase
from dmd.config.methods import dmd as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import noise_levels
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.student_calls import Calls


@dataclass
class Dmd(Method[sections.Dmd]):
    """DMD, with the variants that its section can choose.

    Attributes:
        sigma: noise level of the student's input.
        table: the noise levels of the losses.
        distance: of the regression loss, in the current phase.
    """

    def __post_init__(self) -> None:
        config = self.config
        self.sigma = self.facts.highest(config.sigma, key="distill.method.sigma")
        self.table = noise_levels(config.levels, self.networks["teacher"], self.facts, self.device)
        for index, phase in enumerate(config.phases):
            if (phase.max_index or 0) >= len(self.table):
                key = f"distill.method.phases[{index}].max_index"
                raise ValueError(f"{key}: {phase.max_index} is beyond the {len(self.table)} levels of the teacher")
        self.distance = next(iter(self.distances.values()), None)

    @classmethod
    def steps(cls, config: sections.Dmd, clock: Clock) -> tuple[Step, ...]:
        """A step of the student on both losses, then steps of the fake denoiser, the first on the student's images.

        With `shared_noise` this first step is part of the student's: both use one pass of the fake denoiser.
        """
        phase = clock.phase.config
        assert isinstance(phase, sections.DmdPhase)
        losses, among = config.losses(phase), phase.num_pairs
        size = phase.matching_batch_size or config.matching_batch_size
        noise = Part("noise", size, "noise", among)
        if phase.train == "fake":
            return (Step("fake", ("fake",), (noise,)),)
        parts = [noise] if "matching" in losses else []
        if "regression" in losses:
            parts.append(Part("pairs", phase.regression_batch_size or config.regression_batch_size, "pairs", among))
        if "fake" not in losses:
            return (Step("student", ("student",), tuple(parts)),)
        if config.shared_noise:
            steps = [Step("student", ("student", "fake"), tuple(parts))]
        else:
            matched = parts if config.match_pairs else parts[:1]
            carried = [Part(f"fake_{part.name}", part.size, carries=part.name) for part in matched]
            steps = [Step("student", ("student",), tuple(parts)), Step("fake", ("fake",), tuple(carried))]
        more = [Part(f"noise{number}", size, "noise", among) for number in range(1, phase.fake_updates)]
        return (*steps, *(Step("fake", ("fake",), (part,)) for part in more))

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels and noise: from the matching range for the student, from all levels for the fake denoiser."""
        phase, levels = clock.phase.config, self.config.levels
        assert isinstance(phase, sections.DmdPhase)
        parts = step.parts if step.name == "fake" else self._matched(step, phase)
        if not parts:
            return {}
        first, stop = 0, len(self.table)
        if step.name == "student":
            last = levels.max_index if phase.max_index is None else phase.max_index
            first, stop = levels.min_index, last + 1
        num = sum(part.size for part in parts)
        level = torch.randint(first, stop, (num,), generator=random)
        noise = self.noise(num, random)
        sizes = [part.size for part in parts]
        cut = zip(parts, level.split(sizes), noise.split(sizes), strict=True)
        return {part.name: {"level": index, "level_noise": values} for part, index, values in cut}

    def configure(self, phase: PlannedPhase) -> None:
        """Sets the distance of the regression loss to that with the phase's decoder."""
        assert isinstance(phase.config, sections.DmdPhase)
        self.distance = self.distances.get(phase.config.decoder or self.config.regression_distance.decoder)

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's matching and regression losses, or the fake denoiser's loss on generated images."""
        phase = clock.phase.config
        assert isinstance(phase, sections.DmdPhase)
        if step.name == "fake":
            if part.carries is None:
                with torch.no_grad():
                    rows["generated"] = self.generate(rows)
            noised = self.table.noised(rows["generated"], rows["level_noise"], rows["level"])
            fake_x0 = self.denoiser("fake")(noised.image, noised.sigma, rows["label"])
            return _fraction(part, step.parts) * self._fake_loss(fake_x0, rows, noised.sigma, log)
        matched = self._matched(step, phase)
        image = self.generate(rows)
        rows["generated"] = image.detach()
        loss = image.new_zeros(())
        if part.name == "pairs":
            assert self.distance is not None
            distance = self.distance(image, rows["image"])
            log.scalar("loss/regression", distance, len(image))
            loss = loss + self.config.regression_weight * phase.regression_scale * distance
        if part in matched:
            loss = loss + _fraction(part, matched) * self._matching(image, rows, phase, log)
        if part in matched or not matched:
            log.spread("generated", image)
        return loss

    def sampling(self) -> Calls:
        """One call at `sigma`."""
        return Calls((self.sigma,))

    def _matched(self, step: Step, phase: sections.DmdPhase) -> tuple[Part, ...]:
        """Parts of the student's step that have the matching loss."""
        if "matching" not in self.config.losses(phase):
            return ()
        return step.parts if self.config.match_pairs else step.parts[:1]

    def _matching(self, image: Tensor, rows: Rows, phase: sections.DmdPhase, log: StepLog) -> Tensor:
        """The weighted matching loss, plus the fake loss with `shared_noise`; non-finite gradients are set to 0."""
        config, label = self.config, rows["label"]
        noised = self.table.noised(rows["generated"], rows["level_noise"], rows["level"])
        with torch.no_grad():
            real_x0 = self.denoiser("teacher")(noised.image, noised.sigma, label)
        fake_loss = None
        if not config.fake_score:  # Figure 3 (a): a fake score of 0 means mu_fake = x_t / alpha_t
            fake_x0 = noised.image
        else:
            with torch.set_grad_enabled(config.shared_noise):
                fake_x0 = self.denoiser("fake")(noised.image, noised.sigma, label)
            if config.shared_noise:
                fake_loss = self._fake_loss(fake_x0, rows, noised.sigma, log)
                fake_x0 = fake_x0.detach()
        loss = logged_matching_loss(
            image,
            noised,
            real_x0,
            fake_x0,
            weighting=config.weighting,
            alpha_factor=config.alpha_factor,
            bins=self.table.bins(rows["level"]),
            log=log,
        )
        loss = config.matching_weight * phase.matching_scale * loss
        return loss if fake_loss is None else loss + fake_loss

    def _fake_loss(self, denoised: Tensor, rows: Rows, sigma: Tensor, log: StepLog) -> Tensor:
        fake = self.denoiser("fake")
        loss = denoising_loss(denoised, rows["generated"], weight=fake.loss_weight(sigma))
        log.scalar("loss/fake", loss, len(denoised))
        return loss


def _fraction(part: Part, parts: tuple[Part, ...]) -> float:
    """Weight of a part in a mean over the rows of several."""
    return part.size / sum(other.size for other in parts)


METHOD = Dmd
