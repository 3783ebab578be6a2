"""Trajectory Distribution Matching (Luo et al. 2025, arXiv 2503.06674): a deterministic student of several calls.

The student draws by DDIM: call i maps the image x_i at level s_i to x0, and a step along the ODE takes it to level
s_(i+1), which is 0 after the last call. An update draws i, makes the calls before i without gradient, and matches the
distribution of the image y after call i, at level s_(i+1), to the teacher's:

    student   on x0 of call i, by the matching gradient of DMD (Yin et al. 2023, Eqs. 7 and 8) at
              x_s = y + (s^2 - s_(i+1)^2)^1/2 n, with s from the interval of call i: s_(i+1) < s <= s_i,
    fake      on the same images and in the same interval.

The levels of an interval belong to one call, so that the fake denoiser K knows the images of each call by themselves,
and matching holds for each. The first interval has all levels above s_1, too. The gradient is taken with respect to x0;
that of y differs by the factor 1 - s_(i+1) / s_i.

Fan et al. 2025 (arXiv 2510.27684) remark that K must not learn x0 as its target: for levels above s_(i+1) its score
would be that of images without noise. Here the target is x_s + s^2 (score of x_s given y), that is

    y - s_(i+1)^2 / (s^2 - s_(i+1)^2)^1/2 n,

whose mean given x_s is the denoiser of the distribution of y. Its variance is unbounded near s_(i+1). So the squared
error has the weight 1 - s_(i+1)^2 / s^2 besides the network's own, with which it is bounded, and is that of the noise n
which K implies. Other than in the paper, the student's step comes first, as in dmd2.

With one call this is dmd2 of one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import FakePhase
from dmd.config.methods import tdm as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.call_times import calls_at
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.level_table import Noised, noise_levels
from dmd.methods.parts.matching import logged_matching_loss
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING


@dataclass
class Tdm(Method[sections.Tdm]):
    """TDM.

    Attributes:
        calls: how the student is sampled.
        ends: noise level of the image after each call; 0 after the last.
        table: the noise levels of the losses.
        intervals: first index of the levels of each call, and the index after the last one.
    """

    def __post_init__(self) -> None:
        self.calls = calls_at(self.config.times, self.config.calls, self.facts, between="ode")
        self.ends = (*self.calls.sigmas[1:], 0.0)
        self.table = noise_levels(self.config.levels, self.networks["teacher"], self.facts, self.device)
        first = [int((self.table.sigmas <= end * (1 + ROUNDING)).sum()) for end in self.ends]
        self.intervals = tuple(zip(first, [len(self.table), *first], strict=False))
        for number, (start, stop) in enumerate(self._matched()):
            if start >= stop:
                raise ValueError(
                    f"distill.method.levels: call {number + 1}, from sigma {self.calls.sigmas[number]:.4g} to "
                    f"{self.ends[number]:.4g}, has no noise level of an index from min_index to max_index: widen "
                    "that range, use more levels or fewer calls, or set other times"
                )

    @classmethod
    def steps(cls, config: sections.Tdm, clock: Clock) -> tuple[Step, ...]:
        """A step of the student, then steps of the fake denoiser, the first on the student's images."""
        phase, size = clock.phase.config, config.batch_size
        assert isinstance(phase, FakePhase)
        more = [Part(f"noise{number}", size, "noise") for number in range(1, phase.fake_updates)]
        return (
            Step("student", ("student",), (Part("noise", size, "noise"),)),
            *(Step("fake", ("fake",), (part,)) for part in (Part("carried", size, carries="noise"), *more)),
        )

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise, a noise level from the interval of each call, and for new images the trained call.

        One call is trained in a step, so that all images take the same number of passes.
        """
        part, num = step.parts[0], self.config.batch_size
        ranges = self._matched() if step.name == "student" else self.intervals
        levels = [torch.randint(first, stop, (num,), generator=random) for first, stop in ranges]
        rows = {"level": torch.stack(levels, 1)}
        rows["level_noise"] = self.noise(num, random)
        if part.carries is None:
            call = int(torch.randint(self.config.calls, (), generator=random)) if self.config.calls > 1 else 0
            rows["before"] = torch.zeros((num, call))
        return {part.name: rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The student's matching loss, or the fake denoiser's loss on images after the same call."""
        label, number, fake = rows["label"], _number(rows), self.denoiser("fake")
        if "generated" not in rows:  # a part that carries another one has its images
            with torch.set_grad_enabled(step.name == "student"):
                x0, image = self.trained_call(rows)
            rows["generated"] = image.detach()
        level, end = rows["level"][:, number], self.ends[number]
        sigma = self.table.sigmas[level]
        noised = noised_further(rows["generated"], rows["level_noise"], sigma, end=end)
        with torch.set_grad_enabled(step.name == "fake"):
            fake_x0 = fake(noised, sigma, label)
        if step.name == "fake":
            weight = fake.loss_weight(sigma)
            loss = interval_loss(fake_x0, rows["generated"], rows["level_noise"], sigma, end=end, weight=weight)
            log.scalar("loss/fake", loss, len(label))
            return loss
        with torch.no_grad():
            real_x0 = self.denoiser("teacher")(noised, sigma, label)
        loss = logged_matching_loss(
            x0,
            Noised(noised, sigma, self.table.alphas[level]),
            real_x0,
            fake_x0,
            weighting=self.config.weighting,
            alpha_factor=self.config.alpha_factor,
            huber=self.config.huber,
            bins=self.table.bins(level),
            log=log,
        )
        log.spread("generated", x0)
        return loss

    def trained_call(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """x0 of the trained call, and the image after it, (B, C, H, W) each; gradients reach that call alone."""
        number, student, noise, label = _number(rows), self.networks["student"], rows["noise"], rows["label"]
        with torch.no_grad():
            image = self.calls.before(number, student, noise, label)
        sigma = self.calls.sigmas[number]
        x0 = self.calls.x0(student, image, noise.new_full(noise.shape[:1], sigma), label)
        return x0, self.calls.step(image, x0, sigma, self.ends[number], None, number) if self.ends[number] else x0

    def sampling(self) -> Calls:
        """The calls that are trained."""
        return self.calls

    def _matched(self) -> list[tuple[int, int]]:
        """The part of each interval that the matching loss draws from."""
        levels = self.config.levels
        return [(max(first, levels.min_index), min(stop, levels.max_index + 1)) for first, stop in self.intervals]


def noised_further(image: Tensor, noise: Tensor, sigma: Tensor, *, end: float) -> Tensor:
    """Images (B, C, H, W) at level `end` with as much unit noise more as takes them to levels sigma (B,) above it."""
    return torch.addcmul(image, noise, per_sample(_added(sigma, end), image))


def interval_loss(
    fake_x0: Tensor, image: Tensor, noise: Tensor, sigma: Tensor, *, end: float, weight: Tensor
) -> Tensor:
    """Weighted mean of (1 - end^2 / sigma^2) |fake_x0 - target|^2, with the target y - end^2 / (sigma^2 - end^2)^1/2 n.

    Args:
        fake_x0: K of `noised_further`, (B, C, H, W).
        image: y, at level `end`.
        noise: n, with which y was noised to levels `sigma` (B,).
        weight: of each sample besides, (B,).
    """
    share = per_sample(_added(sigma, end) / sigma, image)
    target = share * image - per_sample(end**2 / sigma, image) * noise  # multiplied by share, which may be 0
    return denoising_loss(share * fake_x0, target, weight=weight)


def _added(sigma: Tensor, end: float) -> Tensor:
    """Standard deviation of the noise that leads from level `end` to levels sigma (B,); sigma itself for `end` 0."""
    return ((sigma - end) * (sigma + end)).sqrt()


def _number(rows: Rows) -> int:
    """The trained call: `before` has a column for each call before it. The CPU knows a shape without waiting."""
    return rows["before"].shape[1]


METHOD = Tdm
