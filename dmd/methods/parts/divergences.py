"""Weights of f-divergences by density ratio, for methods that match distributions with noise.

Let p_s and q_s be the distributions of the teacher's and of the student's images with noise of level s, r = p_s / q_s,
and f a convex function with f(1) = 0. All that a gradient of the divergence D_f = E_q f(r) needs of f is the weight

    h(r) = r^2 f''(r).

The gradient of D_f is - E h(r) (score of p_s - score of q_s) . d x_s, and its derivative by the level s is
- s E_q h(r) |score of p_s - score of q_s|^2 (Xu et al. 2025, arXiv 2502.15681; Wang et al. 2025, arXiv 2505.20755).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOGIT, SMALLEST_RATIO, LARGEST_RATIO = 10.0, 0.1, 20.0

Weight = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """An f-divergence.

    Attributes:
        weight: h(r), up to a constant factor.
        slope: r dh/dr, that is, the derivative of h by ln r, with the same factor.
    """

    weight: Weight
    slope: Weight


DIVERGENCES: Mapping[str, Divergence] = {
    "reverse-kl": Divergence(torch.ones_like, torch.zeros_like),
    "softened-reverse-kl": Divergence(lambda r: 1 / (1 + r), lambda r: -r / (1 + r).square()),
    "jensen-shannon": Divergence(lambda r: r / (1 + r), lambda r: r / (1 + r).square()),
    "squared-hellinger": Divergence(torch.sqrt, lambda r: r.sqrt() / 2),
    "forward-kl": Divergence(lambda r: r, lambda r: r),
    "jeffreys": Divergence(lambda r: 1 + r, lambda r: r),
    "neyman": Divergence(torch.reciprocal, lambda r: -1 / r),
}
"""By name. f is -ln r for reverse-kl, r ln r for forward-kl, their sum for jeffreys, r ln r - (r + 1) ln((r + 1) / 2)
for jensen-shannon, (r + 1) ln((r + 1) / (2 r)) for softened-reverse-kl, 2 (1 - r^1/2)^2 for squared-hellinger, and
(1 - r)^2 / (2 r) for neyman (Xu et al. 2025, Table 1)."""


def density_ratio(logits: Tensor) -> Tensor:
    """r = exp(l) of a discriminator's logits l (B,), in [0.1, 20], float32.

    The best discriminator between the teacher's images and the student's has l = ln r. Outside the bounds r is constant
    and passes no gradient.
    """
    return logits.float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT).exp().clamp(SMALLEST_RATIO, LARGEST_RATIO)
