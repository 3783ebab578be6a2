"""TRACT: transitive closure time-distillation (Berthelot et al. 2023, arXiv 2303.04248), in variance-exploding form.

The levels s_T > ... > s_1 > s_0 = 0 are split into equal groups. From any level of a group the student learns to step
to the group's end, the next group's beginning, as the teacher does in all of its steps on the way. It learns this from
itself: for a level s_t of the group that ends at s_e, an image x and noise n,

    x_t = x + s_t n,   x_{t-1} by one step of the teacher,   x_e = Phi_self(x_{t-1}; s_{t-1} -> s_e),
    target = (s_t x_e - s_e x_t) / (s_t - s_e): one step from x_t with this x0 ends at x_e,
    loss = w(s_t) | D_student(x_t; s_t) - target |^2,

with Phi a step of DDIM, which is Euler's in sigma, and the self-teacher a moving average of the student. If t - 1 = e,
x_e is the teacher's; at s_1 the target is the teacher's x0. The teacher's step is Heun's or Euler's. After a phase the
averaged student is the teacher, at the levels where its groups begin; between these it is only known for Euler's steps,
so those are what later phases take. Student, optimiser and moving average go on.

The weight w is that of the preconditioning for EDM's networks, max(1/s^2, 1) for variance-preserving ones. The average
of the self-teacher has its bias removed: it is over the students of the phase alone, with weights that add up to 1. The
paper's average for evaluation has decayed to 0.001 over a phase: set `ema_decay` to 0.001^(1 / updates) for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER, PlannedPhase
from dmd.config.methods import tract as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import weighted_errors, x0_weight
from dmd.methods.parts.joined_steps import heun_x0, joined_x0
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import sampling_sigmas

SELF_TEACHER = "target"
NUM_BINS = 8  # of levels in the log


@dataclass
class Tract(Method[sections.Tract]):
    """Phases of TRACT.

    Attributes:
        sigmas: levels of the current phase, ascending from 0, float32 (T + 1,); before the first update, of the last
            phase, whose student the file holds.
        size: levels in a group of that phase.
        heun: whether the teacher's step is Heun's in that phase.
    """

    def __post_init__(self) -> None:
        planned, _ = self.config.plan()
        self.configure(planned[-1])

    @classmethod
    def steps(cls, config: sections.Tract, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        return (Step(STUDENT, (STUDENT,), (Part("images", config.batch_size, "images"),)),)

    def configure(self, phase: PlannedPhase) -> None:
        """Sets levels, groups and the teacher's step of a phase."""
        config, groups = self.config, _phase(phase).groups
        top = self.facts.highest(config.sigma_max, key="distill.method.sigma_max")
        first, last = self.facts.levels(config.sigma_min, top, key="distill.method")
        whole = sampling_sigmas(config.levels, sigma_min=first, sigma_max=last, rho=config.rho)
        every = config.levels // self._num_levels(phase)
        self.sigmas = whole[::every].flip(0).float().to(self.device)
        self.size = self._num_levels(phase) // groups
        self.heun = config.solver == "heun" and phase.index == 0

    def begin(self, phase: PlannedPhase) -> None:
        """Makes the averaged student of the phase before the teacher; the self-teacher begins at the student."""
        if phase.first:
            self.networks.copy(TEACHER, STUDENT, averaged=True)
            self.networks.copy(SELF_TEACHER, STUDENT)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Levels, drawn uniformly, and noise."""
        num = self.config.batch_size
        level = torch.randint(1, self._num_levels(clock.phase) + 1, (num,), generator=random)
        return {"images": {"level": level, "noise": self.noise(num, random)}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Weighted error of the student's x0 at a level; the target leads to the end of its group."""
        student, image, label, level = self.networks[STUDENT], rows["image"], rows["label"], rows["level"]
        sigma = self.sigmas[level]
        noised = image + per_sample(sigma, image) * rows["noise"]
        with torch.no_grad():
            target = self.target(noised, level, label)
        x0 = student(noised, sigma, label)
        errors = weighted_errors(x0, target, weight=x0_weight(self.config.weighting, sigma, student))
        loss = errors.mean()
        log.scalar("loss/tract", loss, len(image))
        num = len(self.sigmas) - 1
        num_bins = min(NUM_BINS, num)
        log.binned("loss/level", errors, (level - 1) * num_bins // num, num_bins)
        return loss

    def target(self, noised: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """The x0 that leads from images at levels (B,), from 1, to the ends of their groups."""
        end = (level - 1) // self.size * self.size
        sigma, following, last = self.sigmas[level], self.sigmas[level - 1], self.sigmas[end]
        at_zero, at_end = (per_sample(values, noised) for values in (level == 1, level - 1 == end))
        known = torch.where(level == 1, sigma, following)  # in place of 0, which no denoiser takes
        teacher, ratio = self.networks[TEACHER], per_sample(following / sigma, noised)
        x0 = teacher(noised, sigma, label)
        if self.heun:
            middle = torch.lerp(x0, noised, ratio)
            x0 = torch.where(at_zero, x0, heun_x0(x0, teacher(middle, known, label), sigma, known))
        middle = torch.lerp(x0, noised, ratio)
        jump = self.networks[SELF_TEACHER](middle, known, label)
        if self.config.clip:
            jump = jump.clamp(-1.0, 1.0)
        return torch.where(at_end, x0, joined_x0(x0, jump, (sigma, known, last)))

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """The self-teacher follows the student; its average has no weight on the network that it began as."""
        decay, done = self.config.target_decay, clock.in_phase + 1
        self.networks.follow(SELF_TEACHER, STUDENT, decay * (1 - decay ** (done - 1)) / (1 - decay**done))

    def sampling(self) -> Calls:
        """DDIM over the levels where the groups of the current phase begin."""
        return Calls(tuple(self.sigmas.flip(0)[: -1 : self.size].tolist()), between="ode")

    def _num_levels(self, phase: PlannedPhase) -> int:
        """Levels above 0 of a phase: the groups of the phase before."""
        return self.config.phases[phase.index - 1].groups if phase.index else self.config.levels


def _phase(phase: PlannedPhase) -> sections.TractPhase:
    assert isinstance(phase.config, sections.TractPhase)
    return phase.config


METHOD = Tract
