"""Deterministic solvers of the probability flow ODE dx/dsigma = (x - D(x; sigma)) / sigma; the state is float64.

Temporary tensors are updated in place, since allocating memory costs more than the arithmetic.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from dmd.models.denoiser import start_scale
from dmd.models.student_calls import Calls
from dmd.sampling import schedulers
from dmd.sampling.noise import sampling_sigmas

Denoise = Callable[..., torch.Tensor]  # (image, sigma, label) -> x0, perhaps with an end, as `Denoiser.forward`


class CountingDenoiser:
    """Wraps a denoiser: counts the calls, and casts the inputs to `dtype`."""

    def __init__(self, denoiser: Denoise, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype
        self.num_calls = 0

    def __call__(
        self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor, *end: torch.Tensor
    ) -> torch.Tensor:
        self.num_calls += 1
        levels = [each.to(self.dtype) for each in end]
        return self.denoiser(image.to(self.dtype), sigma.to(self.dtype), label, *levels).to(image.dtype)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the denoiser: sigma_data, preconditioning."""
        return getattr(self.__dict__["denoiser"], name)


OnStep = Callable[
    [int, torch.Tensor], None
]  # called with the step number k (from 1) and the state after it; copy the state to keep it


def euler(
    denoiser: Denoise, image: torch.Tensor, label: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep | None = None
) -> torch.Tensor:
    """Euler's method: one call per step. `image` is float64 at sigmas[0]; `sigmas` are float64, descending to 0."""
    for step, (sigma, next_sigma) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        slope = (image - _x0(denoiser, image, sigma, label)).div_(sigma)
        image = slope.mul_(next_sigma - sigma).add_(image)
        if on_step is not None:
            on_step(step + 1, image)
    return image


def heun(
    denoiser: Denoise, image: torch.Tensor, label: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep | None = None
) -> torch.Tensor:
    """Heun's method (Karras et al. 2022, Algorithm 1): two calls per step, one in the last step."""
    for step, (sigma, next_sigma) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        slope = (image - _x0(denoiser, image, sigma, label)).div_(sigma)
        end = (slope * (next_sigma - sigma)).add_(image)
        if next_sigma > 0:
            end_slope = (end - _x0(denoiser, end, next_sigma, label)).div_(next_sigma)
            end = end_slope.add_(slope).mul_((next_sigma - sigma) * 0.5).add_(image)
        image = end
        if on_step is not None:
            on_step(step + 1, image)
    return image


def dpm_solver_2m(
    denoiser: Denoise, image: torch.Tensor, label: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep | None = None
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2, with alpha 1): one call per step.

    With h the step in -ln sigma, x_next = sigma_next / sigma x + (1 - e^-h) D. D is x0, extrapolated with the x0 of the
    step before; it is not in the first step, which has none, and not in the last, where h is infinite.
    """
    before, step_before = None, 0.0
    for step, (sigma, next_sigma) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        x0 = _x0(denoiser, image, sigma, label)
        ratio = next_sigma / sigma  # e^-h
        height = -math.log(ratio) if ratio else math.inf
        target = x0 if before is None or not ratio else x0 + (x0 - before) * (height / step_before / 2)
        image = (target * (1 - ratio)).add_(image * ratio)
        before, step_before = x0, height
        if on_step is not None:
            on_step(step + 1, image)
    return image


SOLVERS = {"euler": euler, "heun": heun, "dpmsolver++2m": dpm_solver_2m}


@torch.no_grad()
def solve(
    denoiser: Denoise,
    noise: torch.Tensor,
    label: torch.Tensor,
    solver: dict[str, Any],
    fresh: Callable[[int], torch.Tensor] | None = None,
    on_step: OnStep | None = None,
) -> tuple[torch.Tensor, int]:
    """Images from unit noise.

    Args:
        denoiser: (image, sigma, label) -> x0; its inputs have the dtype of `noise`.
        noise: unit variance, (B, C, H, W); it is scaled to the first sigma here.
        label: int64 (B,), or text states (B, L, E).
        solver: {"name": one of `SOLVERS`, "steps", "sigma_min", "sigma_max", "rho"}, or
            {"name": "student", "calls"}, see `dmd.models.student_calls.Calls`, or one of
            `dmd.sampling.schedulers.NAMES`.
        fresh: k -> the k-th further unit noise, from 0; for students that add noise between their calls.
        on_step: called with the float64 state after each step of one of `SOLVERS`.

    Returns:
        Images (B, C, H, W) in the dtype of `noise`, and the number of network calls made.

    Raises:
        ValueError: an unknown solver, or one that does not fit this denoiser.
    """
    if solver["name"] in schedulers.NAMES:
        return schedulers.draw(denoiser, noise, label, solver)  # type: ignore[arg-type]
    counting = CountingDenoiser(denoiser, noise.dtype)
    if solver["name"] == "student":
        calls = Calls.of(solver["calls"])
        if calls.num_fresh and fresh is None:
            raise ValueError(f"a student of {len(calls.sigmas)} calls needs fresh noise between them: give `fresh`")
        return calls.draw(counting, noise, label, fresh or _no_noise), counting.num_calls
    if solver["name"] not in SOLVERS:
        raise ValueError(f"solver {solver['name']!r} is not one of {['student', *SOLVERS, *schedulers.NAMES]}")
    grid = {key: solver[key] for key in ("sigma_min", "sigma_max", "rho")}
    sigmas = sampling_sigmas(solver["steps"], **grid)
    image = start_scale(denoiser, sigmas[0].item()) * noise.double()
    image = SOLVERS[solver["name"]](counting, image, label, sigmas, on_step)
    return image.to(noise.dtype), counting.num_calls


def _no_noise(number: int) -> torch.Tensor:
    raise AssertionError("these calls need no fresh noise")


def _x0(denoiser: Denoise, image: torch.Tensor, sigma: float, label: torch.Tensor) -> torch.Tensor:
    return denoiser(image, torch.full((len(image),), sigma, dtype=image.dtype, device=image.device), label)
