"""The distribution matching gradient (Yin et al. 2023, Section 3.2)."""

from typing import get_args

import torch

from dmd.config.methods.keys import MatchingWeighting
from dmd.methods.base import StepLog
from dmd.methods.parts.level_table import NUM_BINS, Noised
from dmd.models.denoiser import per_sample

WEIGHTINGS = get_args(MatchingWeighting)
FLOOR = 1e-6  # lower bound of the normaliser of Eq. 8


def matching_gradient(
    image: torch.Tensor,
    real_x0: torch.Tensor,
    fake_x0: torch.Tensor,
    *,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    weighting: str = "eq8",
    alpha_factor: bool = False,
    huber: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient whose descent moves generated images from the fake distribution to the real one, per image.

    Eq. 7 is w_t alpha_t (s_fake - s_real), with s = (alpha_t mu - x_t) / sigma_t^2, that is
    w_t alpha_t^2 / sigma_t^2 (fake_x0 - real_x0); see `matching_factor` for w_t.

    Args:
        image, real_x0, fake_x0: generated images and the two x0 estimates of the same noised image, (B, C, H, W).
        alpha, sigma: noise level of each sample as in x_t = alpha_t x0 + sigma_t noise, (B,).
        huber: c of a pseudo-Huber loss in place of the squared error: each element y of fake_x0 - real_x0 becomes
            y / (y^2 + c^2)^1/2.

    Returns:
        The gradient (B, C, H, W) in float32, and the factor on (fake_x0 - real_x0) of each sample (B,).

    Raises:
        ValueError: the shapes differ (broadcasting would average over the wrong axes), or an unknown weighting.
    """
    if not image.shape == real_x0.shape == fake_x0.shape:
        shapes = [tuple(tensor.shape) for tensor in (image, real_x0, fake_x0)]
        raise ValueError(f"image, real_x0 and fake_x0 have shapes {shapes[0]}, {shapes[1]}, {shapes[2]}")
    factor = matching_factor(image, real_x0, alpha=alpha, sigma=sigma, weighting=weighting, alpha_factor=alpha_factor)
    gap = (fake_x0 - real_x0).float()
    if huber is not None:
        gap = gap / (gap.square() + huber**2).sqrt()
    return gap * per_sample(factor, image), factor


def matching_factor(
    image: torch.Tensor,
    real_x0: torch.Tensor,
    *,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    weighting: str,
    alpha_factor: bool,
) -> torch.Tensor:
    """w_t alpha_t^2 / sigma_t^2, or w_t alpha_t / sigma_t^2 without `alpha_factor`, of each sample: float32 (B,).

    The weight w_t is
    "eq8": sigma^2/alpha divided by the mean of |image - real_x0| per sample (Eq. 8), clamped to at least 1e-6;
    "sigma/alpha" and "sigma3/alpha": the alternatives of Table 2; "sigma2/alpha": Eq. 8 without its normaliser,
    the exact KL gradient at that noise level times sigma^2/alpha.
    The official code leaves one factor alpha_t out; `alpha_factor` keeps it, as the paper writes it. For EDM
    teachers alpha = 1 and both agree.

    Raises:
        ValueError: an unknown weighting.
    """
    if weighting == "eq8":
        factor = (image - real_x0).float().abs().flatten(1).mean(1).clamp_min(FLOOR).reciprocal()
    elif weighting == "sigma/alpha":
        factor = sigma.float().reciprocal()
    elif weighting == "sigma3/alpha":
        factor = sigma.float()
    elif weighting == "sigma2/alpha":
        factor = torch.ones_like(sigma, dtype=torch.float32)
    else:
        raise ValueError(f"weighting {weighting!r} is not one of {WEIGHTINGS}")
    return factor * alpha.float() if alpha_factor else factor


def matching_loss(image: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Scalar whose gradient with respect to `image` is gradient / (B*C*H*W); its value means nothing.

    0.5 * mse(image, stopgrad(image - gradient)), mean reduction (Yin et al. 2023, Algorithm 2): the 0.5 and the
    mean are what regression_weight = 0.25 is calibrated against.
    """
    target = (image - gradient).detach()
    return 0.5 * torch.nn.functional.mse_loss(image.float(), target.float())


def finite_matching_loss(image: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`matching_loss` with a gradient of 0 for images whose gradient is not finite; and whether it is, (B,)."""
    finite = gradient.flatten(1).isfinite().all(1)
    return matching_loss(image, torch.where(per_sample(finite, gradient), gradient, 0.0)), finite


def logged_matching_loss(
    image: torch.Tensor,
    noised: Noised,
    real_x0: torch.Tensor,
    fake_x0: torch.Tensor,
    *,
    weighting: str,
    alpha_factor: bool,
    bins: torch.Tensor,
    log: StepLog,
    huber: float | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """`matching_loss` of generated images with `matching_gradient`, where gradients that are not finite are 0.

    Args:
        image: generated, with its graph.
        noised: the same with noise, which both x0 estimates are of.
        bins: of the noise levels, for the log.
        weights: factors on the gradient of each image besides, (B,).
    """
    gradient, factor = matching_gradient(
        image.detach(),
        real_x0,
        fake_x0,
        alpha=noised.alpha,
        sigma=noised.alpha * noised.sigma,
        weighting=weighting,
        alpha_factor=alpha_factor,
        huber=huber,
    )
    if weights is not None:
        gradient = gradient * per_sample(weights, gradient)
    loss, finite = finite_matching_loss(image, gradient)
    gap = (real_x0 - fake_x0).abs().flatten(1).mean(1)
    log.scalar("loss/matching", loss, len(image))
    log.mean("matching/factor", factor, weights=finite.float())
    log.total("matching/nonfinite", (~finite).float())
    log.binned("matching/gap", gap, bins, NUM_BINS, weights=finite.float())
    return loss
