"""Latent consistency models (Luo et al. 2023, arXiv 2310.04378), and LCM-LoRA (Luo et al. 2023, arXiv 2311.05556).

Consistency distillation of a guided teacher on a grid of its timesteps. For a level s, the next lower level r of the
grid, an image x, noise n and guidance w, which is drawn from a range for each image,

    x_s = x + s n,
    x0 = T_u + w (T_c - T_u) of x_s, T_c and T_u the teacher with and without the condition,
    x_r = r/s x_s + (1 - r/s) x0, a step of DDIM,
    loss   d(f(x_s; s, w), f-(x_r; r, w)), f- a moving average of the student, or itself, without gradient.

The network of the student takes w as an input, so that one call draws as the guided teacher: guidance by a second pass
would count twice. The paper writes w = 1 + omega. In LCM-LoRA the student is an adapter, and w is drawn but not given.

The map f is the denoiser D, and at the lowest level the identity. The paper has c_skip z + c_out D at timestep t, z the
variance-preserving image, with c_skip = .25 / ((10 t)^2 + .25) and c_out = 10 t / ((10 t)^2 + .25)^1/2: the identity at
t = 0, and within .0025 of D from t = 1 on. As in the authors' script, the grid has every k-th timestep (k = 20) from
the last one down, and 0 as its end; the paper draws any timestep as the upper one. d is the pseudo-Huber loss of each
value, (e^2 + c^2)^1/2 - c, or the squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.methods import lcm as sections
from dmd.config.methods.call_times import ListedTimes
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.call_times import calls_at
from dmd.methods.parts.drawn_guidance import draw_guidance, guided_x0
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.noise import ROUNDING, karras_sigmas

TARGET = "target"
NUM_BINS = 10  # of noise levels in the log


@dataclass
class Lcm(Method[sections.Lcm]):
    """Latent consistency distillation.

    Attributes:
        calls: how the student is sampled.
        sigmas: levels of the grid, ascending, float32, on the CPU.
    """

    def __post_init__(self) -> None:
        self.sigmas = self._levels()
        self.calls = calls_at(self.config.times, self.config.calls, self.facts)
        low, high = float(self.sigmas[0]), float(self.sigmas[-1])
        first, last = self.calls.sigmas[0], self.calls.sigmas[-1]
        if first > high * (1 + ROUNDING) or last <= low:
            raise ValueError(
                f"distill.method.times: calls from sigma {first:.6g} to {last:.6g} are not within the levels, above "
                f"{low:.6g} and up to {high:.6g}"
            )

    @classmethod
    def steps(cls, config: sections.Lcm, clock: Clock) -> tuple[Step, ...]:
        """One step of the student on one batch of images."""
        return (Step(STUDENT, (STUDENT,), (Part("images", config.batch_size, config.data),)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Neighbouring levels, noise and guidance."""
        num = self.config.batch_size
        index = torch.randint(len(self.sigmas) - 1, (num,), generator=random)
        noise = self.noise(num, random)
        guidance = draw_guidance(num, self.config.guidance.both, random)
        return {"images": {"index": index, "noise": noise, "guidance": guidance}}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Distance of the student at one level to the target at the level below."""
        image, label, guidance, index = rows["image"], rows["label"], rows["guidance"], rows["index"]
        sigma = self.sigmas.to(image.device)[index + 1]
        noised = image + per_sample(sigma, image) * rows["noise"]
        with torch.no_grad():
            target = self.target(noised, index, label, guidance)
        x0 = self._x0(STUDENT, noised, sigma, label, guidance)
        error = x0 - target
        c = self.config.huber
        loss = (error.square() if c is None else (error.square() + c**2).sqrt() - c).mean()
        log.scalar("loss/lcm", loss, len(image))
        bins = index * NUM_BINS // (len(self.sigmas) - 1)
        log.binned("lcm/gap", error.detach().abs().flatten(1).mean(1), bins, NUM_BINS)
        return loss

    def target(self, noised: Tensor, index: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        """f- after a step of the guided teacher from the level above `index` (B,) of the grid to that level."""
        sigmas = self.sigmas.to(noised.device)
        sigma, lower = sigmas[index + 1], sigmas[index]
        x0 = guided_x0(self.denoiser(TEACHER), noised, sigma, label, guidance)
        neighbour = torch.lerp(x0, noised, per_sample(lower / sigma, noised))
        role = TARGET if self.config.target_decay else STUDENT
        return torch.where(per_sample(index == 0, noised), neighbour, self._x0(role, neighbour, lower, label, guidance))

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        """The target network follows the student."""
        if self.config.target_decay:
            self.networks.follow(TARGET, STUDENT, self.config.target_decay)

    def sampling(self) -> Calls:
        """Calls with fresh noise between them."""
        return self.calls

    def fewer_calls(self) -> Mapping[int, Calls]:
        """The times of each number of calls; of listed levels the first ones are taken."""
        if isinstance(self.config.times, ListedTimes):
            return {}
        return {num: calls_at(self.config.times, num, self.facts) for num in range(1, self.config.calls)}

    def _x0(self, role: str, image: Tensor, sigma: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        own = {"guidance": guidance} if self.config.embedded else {}
        x0: Tensor = self.networks[role](image, sigma, label, **own)
        return x0

    def _levels(self) -> Tensor:
        """Levels of the grid, ascending, float32 (N,); ValueError for levels that the teacher does not have."""
        levels, key = self.config.levels, "distill.method.levels"
        if isinstance(levels, sections.KarrasSteps):
            top = self.facts.highest(levels.sigma_max, key=f"{key}.sigma_max")
            low, high = self.facts.levels(levels.sigma_min, top, key=key)
            return karras_sigmas(levels.count, sigma_min=low, sigma_max=high, rho=levels.rho).flip(0).float()
        teacher = self.networks[TEACHER]
        table = teacher.table if isinstance(teacher, Denoiser) else None
        if table is None:
            raise ValueError(f"{key}.kind: teacher, but this teacher has no table of noise levels: use karras")
        sigmas = table[1].float().cpu()
        if levels.skip >= len(sigmas):
            raise ValueError(f"{key}.skip: {levels.skip} is not below the {len(sigmas)} timesteps of the teacher")
        return sigmas[[0, *sorted(range(len(sigmas) - 1, 0, -levels.skip))]]


METHOD = Lcm
