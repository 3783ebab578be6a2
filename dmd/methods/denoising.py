"""Training of a teacher: one update of EDM's objective (Karras et al. 2022, Table 1)."""

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmd.diffusion.denoiser import Denoiser, per_sample
from dmd.diffusion.noise import log_normal_sigmas
from dmd.diffusion.objective import denoising_loss
from dmd.methods.schedule import learning_rate_factor


class DenoiserTraining:
    """A denoiser, its moving average and its optimiser.

    Attributes:
        denoiser: raw weights, in train mode (dropout on, as its architecture says).
        average: torch's AveragedModel of the network.
    """

    def __init__(self, denoiser: Denoiser, numbers: dict[str, Any]) -> None:
        """numbers: the `teacher.training` section (updates, batch_size, learning_rate, ...)."""
        self.denoiser = denoiser.train()
        self.numbers = numbers
        self.average = AveragedModel(denoiser.network, multi_avg_fn=get_ema_multi_avg_fn(numbers["ema_decay"]))
        self.optimiser = torch.optim.AdamW(
            denoiser.network.parameters(),
            lr=numbers["learning_rate"],
            betas=tuple(numbers["betas"]),
            weight_decay=numbers["weight_decay"],
            fused=True,
        )

    def update(self, num: int, image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Update number `num` on clean images (B, C, H, W); returns the loss and the gradient norm, shape (2,)."""
        numbers = self.numbers
        sigma = log_normal_sigmas(
            len(image), mean=numbers["sigma_log_mean"], std=numbers["sigma_log_std"], generator=generator
        ).to(image.device)
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        denoised = self.denoiser(image + per_sample(sigma, image) * noise, sigma, label)
        loss = denoising_loss(denoised, image, weight=self.denoiser.loss_weight(sigma))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.network.parameters(), numbers["gradient_clip"])
        factor = learning_rate_factor(num, total=numbers["updates"], warmup=numbers["warmup"], decay=numbers["decay"])
        for group in self.optimiser.param_groups:
            group["lr"] = numbers["learning_rate"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update_parameters(self.denoiser.network)
        return torch.stack([loss.detach(), norm.detach()])
