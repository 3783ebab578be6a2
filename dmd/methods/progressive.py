"""Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512, Algorithm 2) in variance-exploding coordinates.

In each round a student of N steps learns to do in one step what its teacher does in two; then the student becomes the
teacher of the next round, and N is halved. A step between levels is that of DDIM, which is Euler's in sigma:

    Phi(x; s -> s') = s'/s x + (1 - s'/s) D(x; s).

For the levels s1 > s2 > s3 of two steps of the teacher, an image x and noise n,

    x1 = x + s1 n,   x2 = Phi_teacher(x1; s1 -> s2),   x3 = Phi_teacher(x2; s2 -> s3),
    target = (s1 x3 - s3 x1) / (s1 - s3), which is x3 if s3 = 0: one step from x1 with this x0 ends at x3,
    loss = w(s1) | D_student(x1; s1) - target |^2,   w = max(1/s1^2, 1) or 1 + 1/s1^2 (Section 4), or the network's.

All rounds use one grid of levels. The 2 N steps of the first teacher have the levels of Karras et al. 2022 (Eq. 5) and
then 0, as in their sampler (Song et al. 2023, arXiv 2303.01469, end at sigma_min); each later round takes every second
level of the round before. So from the second round on, a teacher is evaluated only at the levels, and takes only the
steps, that it was trained for. Every round starts at sigma_max; the student of one call goes from there to 0.

If the first teacher takes the guidance w as an input, this is stage 2 of Meng et al. 2022 (arXiv 2210.03142): teacher
and student get the same w, drawn for each image from the range that the first teacher was trained on. With w = 1
throughout it is progressive distillation of the teacher without guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER, PlannedPhase
from dmd.config.methods import progressive as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import weighted_errors, x0_weight
from dmd.methods.parts.drawn_guidance import draw_guidance
from dmd.methods.parts.joined_steps import joined_x0
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import sampling_sigmas

NUM_BINS = 8  # of steps in the log


@dataclass
class Progressive(Method[sections.Progressive]):
    """Rounds of progressive distillation, one per phase.

    Attributes:
        round: section of the current phase; until the first update, of the last phase, whose student the file holds.
        sigmas: levels of the teacher's steps in this round, 0 included, float32 (2 steps + 1,).
    """

    def __post_init__(self) -> None:
        planned, _ = self.config.plan()
        self.configure(planned[-1])

    @classmethod
    def steps(cls, config: sections.Progressive, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        return (Step(STUDENT, (STUDENT,), (Part("images", config.batch_size, "images"),)),)

    def configure(self, phase: PlannedPhase) -> None:
        """Sets the levels of a round."""
        self.round = _round(phase)
        self.sigmas = self.levels(phase).float().to(self.device)

    def begin(self, phase: PlannedPhase) -> None:
        """Copies the student of the round before to teacher and student; in the first round both come from files."""
        if phase.first == 0:
            return
        self.networks.copy(TEACHER, STUDENT, averaged=self.config.next_teacher == "averaged")
        self.networks.copy(STUDENT, TEACHER)
        if _round(phase).fresh_average:
            self.networks.restart_average()

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Steps of the student, drawn uniformly, noise, and guidance where it is an input."""
        num, bounds = self.config.batch_size, self.facts.guidance_range
        index = torch.randint(_round(clock.phase).steps, (num,), generator=random)
        rows = {"step": index, "noise": self.noise(num, random)}
        return {"images": rows | ({"guidance": draw_guidance(num, bounds, random)} if bounds else {})}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted error of the student's x0 at the first of three levels; the target is `two_steps` of the teacher."""
        image, label, index = rows["image"], rows["label"], rows["step"]
        guidance = {"guidance": rows["guidance"]} if "guidance" in rows else {}
        levels = self.sigmas[2 * index], self.sigmas[2 * index + 1], self.sigmas[2 * index + 2]
        sigma = levels[0]
        noised = image + per_sample(sigma, image) * rows["noise"]
        with torch.no_grad():
            target = two_steps(partial(self.networks[TEACHER], **guidance), noised, levels, label)
        x0 = self.networks[STUDENT](noised, sigma, label, **guidance)
        errors = weighted_errors(x0, target, weight=self.weight(sigma))
        loss = errors.mean()
        log.scalar("loss/progressive", loss, len(image))
        num_bins = min(NUM_BINS, self.round.steps)
        log.binned("loss/step", errors, index * num_bins // self.round.steps, num_bins)
        return loss

    def weight(self, sigma: Tensor) -> Tensor:
        """w(sigma) (B,) of the squared error of x0."""
        return x0_weight(self.config.weighting, sigma, self.networks[STUDENT])

    def levels(self, phase: PlannedPhase) -> Tensor:
        """Levels of the teacher's steps in a round: float64 (2 steps + 1,), from sigma_max to 0."""
        config = self.config
        top = self.facts.highest(config.sigma_max, key="distill.method.sigma_max")
        sigma_min, sigma_max = self.facts.levels(config.sigma_min, top, key="distill.method")
        steps = 2 * config.phases[0].steps
        finest = sampling_sigmas(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=config.rho)
        return finest[:: steps // (2 * _round(phase).steps)]

    def sampling(self) -> Calls:
        """DDIM over the student's levels in the current round."""
        return Calls(tuple(self.sigmas[:-1:2].tolist()), between="ode")

    def keep(self, phase: PlannedPhase) -> Calls | None:
        """Calls of the student of a round, if the configuration keeps it."""
        if _round(phase).steps not in self.config.keep:
            return None
        return Calls(tuple(self.levels(phase)[:-1:2].float().tolist()), between="ode")


def two_steps(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    image: Tensor,
    sigmas: tuple[Tensor, Tensor, Tensor],
    label: Tensor,
) -> Tensor:
    """The x0 with which one step from s1 to s3 ends at the same image as two steps of a denoiser via s2 (Algorithm 2).

    Args:
        image: x1 at levels s1, (B, C, H, W).
        sigmas: s1 > s2 > s3 >= 0, each (B,).
    """
    first, second, _ = sigmas
    x0 = denoiser(image, first, label)
    second_x0 = denoiser(torch.lerp(x0, image, per_sample(second / first, image)), second, label)
    return joined_x0(x0, second_x0, sigmas)


def _round(phase: PlannedPhase) -> sections.ProgressivePhase:
    assert isinstance(phase.config, sections.ProgressivePhase)
    return phase.config


METHOD = Progressive
