"""Deterministic solvers of the probability flow ODE dx/dsigma = (x - D(x; sigma)) / sigma; the state is float64.

Temporary tensors are updated in place, since allocating memory costs more than the arithmetic.
"""

import math
from collections.abc import Callable

import torch

Denoise = Callable[..., torch.Tensor]  # (image, sigma, label) -> x0; see `dmd.models.denoiser.Denoiser.forward`
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
        image = _exact_step(image, target, ratio)
        before, step_before = x0, height
        if on_step is not None:
            on_step(step + 1, image)
    return image


def unipc_2m(
    denoiser: Denoise, image: torch.Tensor, label: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep | None = None
) -> torch.Tensor:
    """UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867, with alpha 1, x0 and B(h) = e^-h - 1): one call per step.

    The predictor is a step of `dpm_solver_2m`; the next step reads the same call, D_next, as the corrector. With D the
    x0 at the start of the step and r = h_before / h, the corrector is

        x_next = sigma_next / sigma x + (1 - e^-h) (D + (m + c) (D_next - D) - c / r (D - D_before))
        m = 1 / (1 - e^-h) - 1 / h,    c = (1 / (1 - e^-h) - 2 m / h - m) / (1 + r)

    It is exact if x0 is a parabola in ln sigma, so that the error falls by 8 when steps double. The first step has no
    D_before: it predicts with D, and corrects with the mean of D and D_next. The last, to 0, gives D.
    """
    before, step_before = None, 0.0
    x0 = _x0(denoiser, image, float(sigmas[0]), label)
    for step, (sigma, next_sigma) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        if next_sigma > 0:
            ratio = next_sigma / sigma  # e^-h
            height = -math.log(ratio)
            target = x0 if before is None else x0 + (x0 - before) * (height / step_before / 2)
            next_x0 = _x0(denoiser, _exact_step(image, target, ratio), next_sigma, label)
            difference = next_x0 - x0
            if before is None:
                target = difference.mul_(0.5).add_(x0)
            else:
                inverse, relative = -1 / math.expm1(-height), step_before / height  # relative: r
                mean = inverse - 1 / height  # m
                curvature = (inverse - 2 * mean / height - mean) / (1 + relative)  # c
                target = difference.mul_(mean + curvature).add_(x0).sub_((x0 - before).mul_(curvature / relative))
            image = _exact_step(image, target, ratio)
            before, step_before, x0 = x0, height, next_x0
        else:
            image = x0
        if on_step is not None:
            on_step(step + 1, image)
    return image


SOLVERS = {"euler": euler, "heun": heun, "dpmsolver++2m": dpm_solver_2m, "unipc-2m": unipc_2m}


def _exact_step(image: torch.Tensor, target: torch.Tensor, ratio: float) -> torch.Tensor:
    """The state at level sigma * ratio if x0 is `target` all along the step."""
    return (target * (1 - ratio)).add_(image * ratio)


def _x0(denoiser: Denoise, image: torch.Tensor, sigma: float, label: torch.Tensor) -> torch.Tensor:
    return denoiser(image, torch.full((len(image),), sigma, dtype=image.dtype, device=image.device), label)
