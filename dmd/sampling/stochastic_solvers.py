"""Samplers that add fresh noise between their steps; the state is float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dmd.sampling.ode_solvers import Denoise, heun

Fresh = Callable[[int], Tensor]
MOST = math.sqrt(2) - 1  # by which a step raises the noise level at most


def heun_churn(
    denoiser: Denoise, image: Tensor, label: Tensor, sigmas: Tensor, fresh: Fresh, solver: Mapping[str, Any]
) -> Tensor:
    """The stochastic sampler of Karras et al. 2022 (Algorithm 2): two calls per step, one in the last.

    A step first raises the noise level sigma by the share gamma = min(churn / steps, 2^1/2 - 1), if sigma lies within
    churn_min .. churn_max, with noise of standard deviation churn_noise; then it is one of Heun's. With churn 0 this is
    `heun`, bit for bit.

    Args:
        image: float64 at sigmas[0].
        sigmas: float64, descending to 0.
        fresh: k -> the k-th further unit noise, from 0.
        solver: {"churn", "churn_min", "churn_max", "churn_noise"}: S_churn, S_tmin, S_tmax and S_noise.
    """
    levels, drawn = sigmas.tolist(), 0
    share = min(solver["churn"] / (len(levels) - 1), MOST)
    for sigma, following in zip(levels, sigmas[1:], strict=False):
        raised = sigma
        if share and solver["churn_min"] <= sigma <= solver["churn_max"]:
            raised = sigma * (1 + share)
            added = solver["churn_noise"] * math.sqrt(raised**2 - sigma**2)
            image = image + added * fresh(drawn).to(image.dtype)
            drawn += 1
        image = heun(denoiser, image, label, torch.stack([sigmas.new_tensor(raised), following]))
    return image


def ancestral(
    denoiser: Denoise, image: Tensor, label: Tensor, sigmas: Tensor, fresh: Fresh, solver: Mapping[str, Any]
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, with the variance of the posterior): a call per step.

    From level s to t < s, with r = t / s, the image becomes r^2 x + (1 - r^2) x0 + t (1 - r^2)^1/2 n; the last step
    gives x0. See `heun_churn` for the arguments; `solver` is not read.
    """
    for step, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        x0 = denoiser(image, torch.full((len(image),), sigma, dtype=image.dtype, device=image.device), label)
        kept = (following / sigma) ** 2
        image = kept * image + (1 - kept) * x0
        if following:
            image = image + following * math.sqrt(1 - kept) * fresh(step).to(image.dtype)
    return image


STOCHASTIC = {"heun-churn": heun_churn, "ancestral": ancestral}
