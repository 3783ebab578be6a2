"""Decoupled guidance (Liu et al. 2025, arXiv 2511.22677): matching and guidance at noise levels of their own.

With guidance w the real score of DMD is T_u + w (T_c - T_u), T_c and T_u the teacher with and without the condition. So
its gradient is the sum of two terms, which get a weight, noise levels and noise each:

    matching   v (K - T_c) at x_s               s from all levels,
    guidance   -(w - 1) (T_c - T_u) at x_r      r below the level of the trained call.

The first keeps the student's distribution at the teacher's, the second brings the guidance into few calls. Each term
has the weight w_t of its own level. With weighting eq8 that is 1 / mean|x - T_c - (w - 1) (T_c - T_u)|, with T_c at the
level of the term, so that equal levels, equal noise and v = 1 give the gradient of the guided real score. Other code
divides each term by its mean of |x - T_c|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmd.methods.base import StepLog
from dmd.methods.parts.level_table import NUM_BINS, Noised
from dmd.methods.parts.matching import finite_matching_loss, matching_factor
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.guidance import both_conditions, unguided


def decoupled_gradients(
    image: Tensor,
    matched: Noised,
    guided: Noised,
    *,
    real_x0: Tensor,
    fake_x0: Tensor,
    both_x0: tuple[Tensor, Tensor],
    guidance: float,
    weighting: str,
    alpha_factor: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both terms with respect to generated images.

    Args:
        image: generated images x (B, C, H, W).
        matched, guided: the same with noise, for the matching and for the guidance term.
        real_x0, fake_x0: T_c and K of `matched`.
        both_x0: T_u and T_c of `guided`.
        guidance: w.
        weighting, alpha_factor: as in `matching_factor`.

    Returns:
        The gradients of the matching term, for v = 1, and of the guidance term, (B, C, H, W) in float32; and the factor
        on K - T_c of each sample (B,).
    """
    without_x0, with_x0 = both_x0
    term = (guidance - 1) * (with_x0 - without_x0).float()

    def factor(x0: Tensor, noised: Noised) -> Tensor:
        sigma = noised.alpha * noised.sigma
        return matching_factor(
            image, x0 + term, alpha=noised.alpha, sigma=sigma, weighting=weighting, alpha_factor=alpha_factor
        )

    on_matching, on_guidance = factor(real_x0, matched), factor(with_x0, guided)
    matching = (fake_x0 - real_x0).float() * per_sample(on_matching, image)
    return matching, -term * per_sample(on_guidance, image), on_matching


def logged_decoupled_loss(
    image: Tensor,
    matched: Noised,
    guided: Noised,
    label: Tensor,
    *,
    teacher: Denoiser,
    fake_x0: Tensor,
    guidance: float,
    matching_weight: float,
    weighting: str,
    alpha_factor: bool,
    bins: tuple[Tensor, Tensor],
    log: StepLog,
) -> Tensor:
    """The sum of both terms' losses of generated images; gradients that are not finite are 0, in each term by itself.

    The log has the matching loss without its weight v, as for other methods. The teacher makes three passes over an
    image: T_c at the level of the matching term, T_c and T_u at that of the guidance term.

    Args:
        image: generated, with its graph.
        matched, guided: the same with noise.
        teacher: with guidance.
        fake_x0: K of `matched`.
        matching_weight: v.
        bins: of the noise levels of `matched` and `guided`, for the log.
    """
    with torch.no_grad():
        real_x0 = unguided(teacher)(matched.image, matched.sigma, label)
        without_x0, with_x0 = both_conditions(teacher, guided.image, guided.sigma, label)
    matching, guiding, factor = decoupled_gradients(
        image.detach(),
        matched,
        guided,
        real_x0=real_x0,
        fake_x0=fake_x0,
        both_x0=(without_x0, with_x0),
        guidance=guidance,
        weighting=weighting,
        alpha_factor=alpha_factor,
    )
    matching_loss, finite = finite_matching_loss(image, matching)
    guidance_loss, also_finite = finite_matching_loss(image, guiding)
    log.scalar("loss/matching", matching_loss, len(image))
    log.scalar("loss/guidance", guidance_loss, len(image))
    for name, gradient, kept in (("matching", matching, finite), ("guidance", guiding, also_finite)):
        log.mean(f"{name}/norm", gradient.flatten(1).square().mean(1).sqrt(), weights=kept.float())
        log.total(f"{name}/nonfinite", (~kept).float())
    log.mean("matching/factor", factor, weights=finite.float())
    log.binned("matching/gap", _size(real_x0 - fake_x0), bins[0], NUM_BINS, weights=finite.float())
    log.binned("guidance/gap", _size(with_x0 - without_x0), bins[1], NUM_BINS, weights=also_finite.float())
    return matching_weight * matching_loss + guidance_loss


def _size(difference: Tensor) -> Tensor:
    """Mean absolute value of each sample (B,)."""
    return difference.abs().flatten(1).mean(1)
