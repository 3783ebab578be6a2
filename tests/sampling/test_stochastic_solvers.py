"""Samplers with fresh noise: without churn Heun's, levels and noise of churn, the posterior's step, seeds."""

import math

import pytest
import torch
from torch import Tensor

from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.sampling.noise import SeededDraws, sampling_sigmas, seeded_draws
from dmd.sampling.solvers import solve
from dmd.sampling.stochastic_solvers import ancestral, heun_churn

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
CHURN = {"name": "heun-churn", "steps": 12, **GRID, "churn": 3.0, "churn_min": 0.05, "churn_max": 50.0}
CHURN |= {"churn_noise": 1.003}
MEAN, STD = 0.3, 0.5


def gaussian() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.tensor([1.0]))


def draw(solver: dict, num: int = 4) -> tuple[Tensor, int]:
    draws = SeededDraws(range(num), (1, 1, 1), num_classes=0)
    return solve(gaussian(), draws.noise, draws.label, solver, draws.fresh)


def test_without_churn_it_is_heun_bit_for_bit_and_asks_for_no_noise():
    still = draw({**CHURN, "churn": 0.0})
    plain = draw({"name": "heun", "steps": 12, **GRID})
    assert torch.equal(still[0], plain[0]) and still[1] == plain[1] == 23


@pytest.mark.parametrize(("churn", "share"), [(3.0, 3 / 12), (40.0, math.sqrt(2) - 1)])
def test_churn_raises_levels_within_its_window_by_noise_that_fits(churn, share):
    """A denoiser that gives back its input leaves the image as it is, so that only added noise is left."""
    sigmas, seen, asked = sampling_sigmas(12, **GRID), [], []

    def denoiser(image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return image

    def fresh(number: int) -> Tensor:
        asked.append(number)
        return torch.ones(2, 1, 1, 1)

    label = torch.full((2,), -1)
    image = heun_churn(denoiser, torch.zeros(2, 1, 1, 1).double(), label, sigmas, fresh, {**CHURN, "churn": churn})
    inside = [sigma for sigma in sigmas[:-1].tolist() if 0.05 <= sigma <= 50.0]
    assert 0 < len(inside) < 12 and asked == [*range(len(inside))]
    expected = [sigma * (1 + share) if sigma in inside else sigma for sigma in sigmas[:-1].tolist()]
    assert seen[::2] == pytest.approx(expected)
    added = sum(1.003 * sigma * math.sqrt((1 + share) ** 2 - 1) for sigma in inside)
    torch.testing.assert_close(image, torch.full_like(image, added))


def test_an_ancestral_step_has_mean_and_variance_of_the_posterior():
    """q(x_t | x_s, x0) of levels t < s: mean r^2 x_s + (1 - r^2) x0 and variance t^2 (1 - r^2), with r = t / s."""
    sigmas = torch.tensor([4.0, 1.5, 0.0]).double()
    label, zero, one = torch.full((1,), -1), torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    states: list[Tensor] = []

    def denoiser(image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        states.append(image)
        return torch.full_like(image, 0.7)

    kept = (1.5 / 4.0) ** 2
    for start, noise, expected in ((one, zero, kept + 0.7 * (1 - kept)), (zero, one, 1.5 * math.sqrt(1 - kept))):
        states.clear()
        end = ancestral(denoiser, start, label, sigmas, lambda number, noise=noise: noise, {})
        x0 = 0.7 * (1 - kept) if noise is one else 0.0
        torch.testing.assert_close(states[1], torch.full_like(zero, expected + x0))
        torch.testing.assert_close(end, torch.full_like(zero, 0.7))


MANY = {**CHURN, "steps": 64, "churn": 16.0}


@pytest.mark.parametrize(("solver", "calls"), [(MANY, 127), ({"name": "ancestral", "steps": 250, **GRID}, 250)])
def test_samples_of_an_exact_gaussian_have_its_mean_and_spread(solver, calls):
    random, num = torch.Generator().manual_seed(0), 20_000
    start, label = torch.randn(num, 1, 1, 1, generator=random), torch.full((num,), -1)
    image, made = solve(gaussian(), start, label, solver, lambda number: torch.randn(start.shape, generator=random))
    assert made == calls
    assert float(image.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(image.std()) == pytest.approx(STD, rel=0.03)


def test_further_noise_of_an_item_comes_from_its_seed_alone():
    one, other = SeededDraws([7, 8], (2, 1, 1), num_classes=3), SeededDraws([8], (2, 1, 1), num_classes=3)
    for number in range(3):
        assert torch.equal(one.fresh(number)[1], other.fresh(number)[0])
    noise, label, further = seeded_draws([8], (2, 1, 1), num_classes=3, num_fresh=2)
    assert torch.equal(noise, other.noise) and torch.equal(label, other.label)
    again = SeededDraws([8], (2, 1, 1), num_classes=3)
    assert all(torch.equal(value, again.fresh(number)) for number, value in enumerate(further))
    with pytest.raises(ValueError, match="noise 0 is asked for, but 2 follows"):
        again.fresh(0)
