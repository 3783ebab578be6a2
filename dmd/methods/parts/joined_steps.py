"""One step of the probability flow ODE with the end of several: the x0 that it needs.

A step between levels is that of DDIM, which is Euler's in sigma: Phi(x; s -> s') = s'/s x + (1 - s'/s) x0.
"""

from __future__ import annotations

from torch import Tensor

from dmd.models.denoiser import per_sample


def joined_x0(first: Tensor, second: Tensor, sigmas: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The x0 with which one step from s1 to s3 ends at the same image as steps from s1 to s2 and from s2 to s3.

    With x1 and the end x3 it is (s1 x3 - s3 x1) / (s1 - s3) (Salimans and Ho 2022, Algorithm 2). This is computed as
    the weighted mean of the x0 of both steps,

        (s3/s2 (1 - s2/s1) x0_first + (1 - s3/s2) x0_second) / (1 - s3/s1),

    which avoids cancellation in the difference of x1 and x3, whose noise (sigma up to 80) may far exceed x0.

    Args:
        first, second: x0 of the steps, (B, C, H, W).
        sigmas: s1 > s2 > s3 >= 0, each (B,); where s2 = s3 > 0, the result is `first`.
    """
    high, middle, low = sigmas
    ratio21, ratio32, ratio31 = (per_sample(ratio, first) for ratio in (middle / high, low / middle, low / high))
    return (ratio32 * (1 - ratio21) * first + (1 - ratio32) * second) / (1 - ratio31)


def heun_x0(first: Tensor, second: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """The x0 of Heun's step from levels sigma to next_sigma, each (B,) and above 0.

    The mean of the slopes (x - D) / sigma at both ends is that of the x0 D1 + (D2 - D1) sigma / (2 next_sigma).

    Args:
        first: D1, a denoiser's x0 at sigma.
        second: D2, its x0 at next_sigma, of the image to which a step with D1 leads.
    """
    return first + per_sample(sigma / (2 * next_sigma), first) * (second - first)
