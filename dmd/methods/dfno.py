"""DFNO, or DSNO (Zheng et al. 2023, arXiv 2211.13449): a network that gives several states of a path in one pass.

The teacher's ODE leads from noise n at level sigma through states x_1 .. x_M at levels s_1 > .. > s_M = 0 to the image
x_M. The student's pass works on M copies of the noise image x = sigma n at once, each told the place of its state;
convolutions along the states, in Fourier space, let them share what they compute (see
`dmd.models.networks.state_convolution`). With the output D_m of state m as x0, the state is that of a DDIM step,

    x^_m = D_m + s_m / sigma (x - D_m),

and the loss is the mean over states of

    w_m distance(a_m x^_m, a_m x_m),    w_m = min(max(1 / s_m, 1), largest_weight),    a_m = (1 + s_m^2)^-1/2,

with weights divided by their mean. The paper has variance-preserving states, which are a_m x_m, and the weight
alpha / sigma of them between 1 and 10^4, which is 1 / s_m. At first, all D_m are the x0 of the network that the student
starts from, since the new layers are zero.

Only the image is drawn, from one call, though of M times the cost. With one state there are no new layers, and this is
the regression of `dmd` alone, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT
from dmd.config.methods import dfno as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.models.denoiser import per_sample, start_scale
from dmd.models.student_calls import Calls


@dataclass
class Dfno(Method[sections.Dfno]):
    """DFNO.

    Attributes:
        sigma: noise level of the start.
    """

    def __post_init__(self) -> None:
        self.sigma = self.facts.highest(self.config.sigma, key="distill.method.sigma")

    @classmethod
    def steps(cls, config: sections.Dfno, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of paths."""
        return (Step(STUDENT, (STUDENT,), (Part("trajectories", config.batch_size, "trajectories"),)),)

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The weighted distance of the student's states to those of the path."""
        (distance,) = self.distances.values()
        states, levels = self.states(rows["noise"], rows["levels"], rows["label"]), rows["levels"][0]
        scales, weights = (1 + levels.square()).rsqrt(), state_weights(levels, self.config.largest_weight)
        values = []
        for number, (scale, weight) in enumerate(zip(scales, weights, strict=True)):
            value = distance(scale * states[:, number], scale * rows["trajectory"][:, number])
            log.scalar(f"distance/state{number}", value, len(states))
            values.append(weight * value)
        loss = torch.stack(values).mean()
        log.scalar("loss/states", loss, len(states))
        log.spread("generated", states[:, -1])
        return loss

    def states(self, noise: Tensor, levels: Tensor, label: Tensor) -> Tensor:
        """The student's states (B, M, C, H, W) at levels (B, M) of the paths from unit noise (B, C, H, W)."""
        student = self.denoiser(STUDENT)
        start = start_scale(student, self.sigma) * noise
        x0 = student.path(start, noise.new_full(noise.shape[:1], self.sigma), label)
        place = per_sample(levels.flatten() / self.sigma, x0[:, 0]).unflatten(0, levels.shape)
        return torch.lerp(x0, start[:, None].expand_as(x0), place)

    def sampling(self) -> Calls:
        """One call at `sigma`, whose x0 is the last state."""
        return Calls((self.sigma,))


def state_weights(levels: Tensor, largest: float) -> Tensor:
    """1 / s of levels s (M,), between 1 and `largest`, over the mean of these weights."""
    weights = levels.reciprocal().clamp(1.0, largest)
    return weights / weights.mean()


METHOD = Dfno
