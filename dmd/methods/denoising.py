"""Training of a denoiser on images: EDM's objective (Karras et al. 2022, arXiv 2206.00364, Table 1).

E lambda(sigma) || D(x + sigma n; sigma) - x ||^2, lambda the preconditioning's loss weight, ln sigma ~ N(mean, std^2).

With levels `table`, sigma is uniform among the noise levels of a network with timesteps. If it predicts epsilon, this
is the objective of Ho et al. 2020 (arXiv 2006.11239, Eq. 14), with which Stable Diffusion was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.config.methods import denoising as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.models.denoiser import Denoiser, per_sample
from dmd.sampling.noise import log_normal_sigmas


@dataclass
class Denoising(Method[sections.Denoising]):
    """Trains a teacher; as in every method, the trained network is called student."""

    @classmethod
    def steps(cls, config: sections.Denoising, clock: Clock) -> tuple[Step, ...]:
        """One step on one batch of images, with the dropout of the network's architecture."""
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),), dropout=("student",)),)

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        """Noise levels, noise, and which labels are used."""
        config, num = self.config, self.config.batch_size
        sigma = self._levels(num, random)
        rows = {"sigma": sigma, "noise": self.noise(num, random)}
        if config.label_dropout:
            rows["use_label"] = torch.rand(num, generator=random) >= config.label_dropout
        return {"images": rows}

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """The denoising loss of noised images."""
        student, image, sigma, label = self.networks["student"], rows["image"], rows["sigma"], rows["label"]
        assert isinstance(student, Denoiser)
        if "use_label" in rows:
            empty = self._empty()
            used = rows["use_label"].reshape(-1, *[1] * empty.ndim)
            label = torch.where(used, label, empty)
        denoised = student(image + per_sample(sigma, image) * rows["noise"], sigma, label)
        loss = denoising_loss(denoised, image, weight=student.loss_weight(sigma))
        log.scalar("loss/denoising", loss, len(image))
        return loss

    def _levels(self, num: int, random: torch.Generator) -> Tensor:
        """Noise levels (num,)."""
        config, student = self.config, self.networks["student"]
        if config.levels == "log-normal":
            return log_normal_sigmas(num, mean=config.sigma_log_mean, std=config.sigma_log_std, generator=random)
        table = student.table if isinstance(student, Denoiser) else None
        if table is None:
            raise ValueError("method.levels: table, but the network has no table of noise levels")
        return table[1][torch.randint(len(table[1]), (num,), generator=random)].float()

    def _empty(self) -> Tensor:
        """The empty condition: text states of the empty prompt, or the label -1."""
        if self.facts.empty is None:
            return torch.tensor(-1, device=self.device)
        return self.facts.empty.to(self.device)


METHOD = Denoising
