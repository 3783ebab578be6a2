"""Denoisers D(image; sigma, label) -> x0: a preconditioned network, and an exact one for Gaussian mixtures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dmd.models.preconditioning import Coefficients
from dmd.models.preconditioning import preconditioning as make_preconditioning


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (B,) as (B, 1, 1, 1), to multiply images by."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module):
    """A network with preconditioning, D(x; sigma) = c_skip x + c_out F(c_in x; condition).

    Args:
        network: F_theta(image, condition, label).
        sigma_data: standard deviation of the data.
        preconditioning: see `dmd.models.preconditioning.preconditioning`; None is EDM's.

    Attributes:
        dtype: of the network's passes under autocast; parameters stay float32. None is float32 throughout.
        scheduler: configuration of the diffusers scheduler that the network was trained with; None if it has none.
        guidance: w of calls that name none, for a network that takes the guidance as an input; 1 is none.
    """

    guidance: float = 1.0
    dtype: torch.dtype | None = None
    scheduler: dict[str, Any] | None = None

    def __init__(
        self, network: nn.Module, *, sigma_data: float, preconditioning: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.preconditioning = make_preconditioning(preconditioning, sigma_data=sigma_data)

    def forward(
        self,
        image: torch.Tensor,
        sigma: torch.Tensor,
        label: torch.Tensor,
        *,
        level: torch.Tensor | None = None,
        end: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """image (B, C, H, W) = x0 + sigma * noise; sigma (B,) > 0; label int64 (B,), or text states float32 (B, L, E).

        `level` (B,) is the noise level that the network's condition is of, for a student that gives more than x0; None
        is sigma. A network with a second time gets end / (1 + end), where `end` (B,) is the noise level that a step
        with this x0 leads to; None is 0. A network that takes the guidance as an input gets w (B,); None is the
        attribute.

        Returns x0 (B, C, H, W) in the dtype of the image; the two terms are added in the dtype of the coefficients. Of
        a network that gives several states it is that of the last one.
        """
        if getattr(self.network, "num_states", 1) > 1:
            return self.path(image, sigma, label)[:, -1]
        coefficients = self.preconditioning(sigma)
        condition = coefficients.condition if level is None else self.preconditioning(level).condition
        return self._x0(image, coefficients, self._with_inputs(condition, end, guidance), label)

    def path(self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """x0 of every state of a path, (B, M, C, H, W), the last one that of the image; inputs as for `forward`.

        The path leads from the image at level sigma to an image without noise. The DDIM step with x0 of a state, from
        sigma to the level of the state, ends at the state. The network gets each state's place, from (M - 1) / M down
        to 0, as its second time.
        """
        num_states = getattr(self.network, "num_states", 1)
        if num_states == 1:
            return self(image, sigma, label)[:, None]
        place = torch.arange(num_states - 1, -1, -1, device=sigma.device, dtype=torch.float32) / num_states
        second = place.expand(image.shape[0], -1).flatten()  # `len` of a tensor would fix the size of an exported batch
        image, sigma, label = (each.repeat_interleave(num_states, dim=0) for each in (image, sigma, label))
        coefficients = self.preconditioning(sigma)
        condition = coefficients.condition
        x0 = self._x0(image, coefficients, torch.stack([condition, second.to(condition.dtype)], dim=1), label)
        return x0.unflatten(0, (-1, num_states))

    def _x0(
        self, image: torch.Tensor, coefficients: Coefficients, condition: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """x0 from the network's output, with a condition that need not be that of the coefficients."""
        c_skip, c_out, c_in, _ = coefficients
        out = self.predict((image * per_sample(c_in, image)).to(image.dtype), condition, label)
        skip = image * per_sample(c_skip, image)
        return torch.addcmul(skip, out.to(skip.dtype), per_sample(c_out, image)).to(image.dtype)

    def predict(self, image: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The network's raw output (B, C, H, W), in the dtype of the image; `condition` (B,) is its noise condition."""
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None):
            return self.network(image, condition, label).to(image.dtype)

    @property
    def takes_guidance(self) -> bool:
        """Whether the network takes the guidance as an input."""
        return bool(getattr(self.network, "guidance_input", None))

    def _with_inputs(
        self, condition: torch.Tensor, end: torch.Tensor | None, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """The noise condition (B,), or (B, ...) with a column for each further input of the network."""
        columns = [condition]
        if getattr(self.network, "second_time", None):
            columns.append(torch.zeros_like(condition) if end is None else end / (1 + end))
        if self.takes_guidance:
            columns.append(torch.full_like(condition, self.guidance) if guidance is None else guidance.to(condition))
        return condition if len(columns) == 1 else torch.stack(columns, dim=1)

    def bottleneck(self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Features in the middle of the network (B, F, r, r), float32, for the inputs of `forward`."""
        _, _, c_in, condition = self.preconditioning(sigma)
        condition = self._with_inputs(condition, None, None)
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None):
            scaled = (image * per_sample(c_in, image)).to(image.dtype)
            return self.network.bottleneck(scaled, condition, label).float()  # type: ignore[operator]

    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Weight (B,) of the squared x0 error in the denoising loss."""
        return self.preconditioning.loss_weight(sigma)

    @property
    def table(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(alpha, sigma) of each of the network's noise levels, sigma ascending, float64; None if it has no table."""
        return self.preconditioning.table


def start_scale(denoiser: Any, sigma: float) -> float:
    """Factor on unit noise that gives the start image of `denoiser` at level sigma.

    It is sigma for variance-exploding networks, and 1 / alpha for those whose input starts as unit noise.
    """
    levels = getattr(denoiser, "preconditioning", None)
    return sigma if levels is None else levels.start_scale(sigma)


class GaussianMixtureDenoiser(nn.Module):
    """The exact denoiser of a mixture of isotropic Gaussians, computed in float64; x0 has the dtype of the image.

    E[x0 | x] = sum_k r_k (s_k^2 x + sigma^2 mu_k) / (s_k^2 + sigma^2), with responsibilities r_k proportional to
    w_k N(x; mu_k, s_k^2 + sigma^2).
    """

    means: torch.Tensor
    stds: torch.Tensor
    weights: torch.Tensor

    def __init__(self, means: torch.Tensor, stds: torch.Tensor, weights: torch.Tensor) -> None:
        """means (K, C, H, W), stds (K,), weights (K,) summing to 1. ValueError if the counts differ."""
        super().__init__()
        if not len(means) == len(stds) == len(weights):
            raise ValueError(f"{len(means)} means, {len(stds)} stds and {len(weights)} weights")
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.double())
        self.register_buffer("weights", weights.double())

    def forward(self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """As `Denoiser.forward`; the label is ignored."""
        flat, means = image.double().flatten(1), self.means.flatten(1)
        noise = sigma.double().square()[:, None]  # (B, 1)
        spread = self.stds.square() + noise  # (B, K)
        distance = (flat[:, None] - means).square().sum(-1)
        logits = self.weights.log() - 0.5 * (distance / spread + flat.shape[1] * spread.log())
        share = logits.softmax(-1)  # responsibilities (B, K)
        x0 = (share * self.stds.square() / spread).sum(-1, keepdim=True) * flat + (share * noise / spread) @ means
        return x0.to(image.dtype).reshape(image.shape)
