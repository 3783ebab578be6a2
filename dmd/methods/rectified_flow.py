"""Rectified flow: reflow and one-call distillation (Liu et al. 2022, arXiv 2209.03003; InstaFlow, arXiv 2309.06380).

A flow z_t with velocity u(z_t; t) moves noise n at t = 1 to an image x at t = 0. Reflow trains it on the straight paths
between noise and image of pairs that another flow has drawn,

    z_t = (1 - t) x + t n,   loss = E | u(z_t; t) - (n - x) |^2,   t uniform

(the papers count t from noise to image). Paths of a flow do not cross, so the straight lines of its pairs cross less
than those of any noise and image, the learned paths are straighter, and a few Euler steps follow them. Distillation
trains one call from noise alone: a distance of its image to that of the pair.

In variance-exploding coordinates sigma = t / (1 - t) and x_sigma = z_t / (1 - t), so that u = (x_sigma - D) / sigma - D
and an error of D counts ((1 + sigma) / sigma)^2 times in u. Straight lines stay straight, and an Euler step in t is a
DDIM step. The papers start at t = 1, where sigma is infinite. Here the start is the image s of the noise level `sigma`
that the pairs were drawn from, 80 n for EDM's networks, and the path is the straight line from there to x:

    x_sigma' = x + sigma' / sigma (s - x),   target x,   sigma' / (1 + sigma') uniform,

which goes to that of the papers as sigma grows, and gives the student the same input in training and in sampling.

Each round of reflow needs pairs of the flow of the round before: an experiment whose teacher is that round's student.
The distillation reads pairs of the last flow, and starts from it. InstaFlow's distillation takes L2 first, LPIPS later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT
from dmd.config.methods import rectified_flow as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import weighted_errors
from dmd.models.denoiser import per_sample, start_scale
from dmd.models.student_calls import Calls

NUM_BINS = 10  # of times in the log


@dataclass
class RectifiedFlow(Method[sections.RectifiedFlow]):
    """Reflow, or distillation, on pairs.

    Attributes:
        sigma: noise level of the start.
        sigma_min: lowest level of reflow.
    """

    def __post_init__(self) -> None:
        self.sigma = self.facts.highest(self.config.sigma, key="distill.method.sigma")
        self.sigma_min, _ = self.facts.levels(self.config.sigma_min, None, key="distill.method")

    @classmethod
    def steps(cls, config: sections.RectifiedFlow, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of pairs."""
        return (Step(STUDENT, (STUDENT,), (Part("pairs", config.batch_size, "pairs"),)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Times of reflow, uniform between those of its lowest and highest level."""
        if self.config.objective == "distillation":
            return {}
        first, last = (sigma / (1 + sigma) for sigma in (self.sigma_min, self.sigma))
        position = torch.rand(self.config.batch_size, generator=random, dtype=torch.float64)
        time = first + position * (last - first)
        bins = (position * NUM_BINS).long()
        return {"pairs": {"sigma": (time / (1 - time)).float(), "bin": bins}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The squared error of velocities on the paths of the pairs, or the distance of the call's images to theirs."""
        student, image, label = self.networks[STUDENT], rows["image"], rows["label"]
        if self.config.objective == "distillation":
            (distance,) = self.distances.values()
            loss = distance(self.generate(rows), image)
            log.scalar("loss/distillation", loss, len(image))
            return loss
        start, sigma = start_scale(student, self.sigma) * rows["noise"], rows["sigma"]
        x0 = student(on_path(image, start, sigma / self.sigma), sigma, label)
        errors = weighted_errors(x0, image, weight=((1 + sigma) / sigma).square())
        loss = errors.mean()
        log.scalar("loss/reflow", loss, len(image))
        log.binned("reflow/error", errors, rows["bin"], NUM_BINS)
        return loss

    def sampling(self) -> Calls:
        """Euler steps of equal length in t, from the start to the image."""
        num, last = self.config.calls, self.sigma / (1 + self.sigma)
        times = [last * (1 - number / num) for number in range(1, num)]
        return Calls((self.sigma, *(time / (1 - time) for time in times)), between="ode")


def on_path(image: Tensor, start: Tensor, place: Tensor) -> Tensor:
    """Points of the straight lines from images (B, C, H, W) at place 0 to their starts at place 1; places (B,)."""
    return torch.lerp(image, start, per_sample(place, image))


METHOD = RectifiedFlow
