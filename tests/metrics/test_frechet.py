"""Frechet distance against closed forms, and the floor against fresh samples."""

import statistics

import numpy as np
import pytest
import torch

from dmd.metrics import frechet
from dmd.metrics.moments import Moments


def gaussian(seed: int, size: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T


def test_distance_equals_the_closed_form_of_diagonal_gaussians():
    mean, other_mean = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    variance, other_variance = torch.tensor([4.0, 0.0, 1.0]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    expected = (mean - other_mean).square().sum() + (variance.sqrt() - other_variance.sqrt()).square().sum()
    found = frechet.frechet_distance(mean, variance.diag(), other_mean, other_variance.diag())
    assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("rank", [8, 3])
def test_distance_equals_the_trace_of_the_root_of_the_product(rank):
    mean, covariance = gaussian(0, 8, rank)
    other_mean, other_covariance = gaussian(1, 8, 8)
    eigenvalues = np.linalg.eigvals((covariance @ other_covariance).numpy())
    root = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    expected = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * root
    found = frechet.frechet_distance(mean, covariance, other_mean, other_covariance)
    assert found == pytest.approx(float(expected), rel=1e-6)
    swapped = frechet.frechet_distance(other_mean, other_covariance, mean, covariance)
    assert swapped == pytest.approx(found, rel=1e-9)


def test_distance_of_covariances_of_many_scales_is_exact():
    basis = torch.linalg.qr(gaussian(8, 128, 128)[1]).Q
    variances = torch.logspace(1, -7, 128, dtype=torch.float64)
    covariance, wider = (basis @ (scale * variances).diag() @ basis.T for scale in (1.0, 1.3))
    mean = torch.zeros(128)
    expected = float(variances.sum()) * (1.3**0.5 - 1) ** 2
    assert frechet.frechet_distance(mean, covariance, mean, wider) == pytest.approx(expected, rel=1e-9)


def test_gaussian_floor_of_covariances_of_many_scales_vanishes_with_many_samples():
    basis = torch.linalg.qr(gaussian(8, 64, 64)[1]).Q
    variances = torch.logspace(3, -8, 64, dtype=torch.float64)
    covariance = basis @ variances.diag() @ basis.T
    (found,) = frechet.gaussian_floor(torch.zeros(64).double(), covariance, num_samples=10**12, num_draws=1, seed=0)
    assert found < 1e-10 * float(variances.sum())


@pytest.mark.parametrize("rank", [64, 5, 0])
def test_distance_of_a_gaussian_to_itself_vanishes(rank):
    mean, covariance = gaussian(2, 64, rank)
    found = frechet.frechet_distance(mean, covariance, mean, covariance)
    assert found <= 1e-10 * float(covariance.trace() + 1)


def test_distance_refuses_different_sizes():
    with pytest.raises(ValueError, match="8 and of 3 features"):
        frechet.frechet_distance(*gaussian(0, 8, 8), *gaussian(0, 3, 3))


def test_floor_agrees_with_the_distance_between_fresh_samples():
    generator = torch.Generator().manual_seed(3)
    scales = torch.linspace(0.1, 2, 16)
    real = torch.randn(400, 16, generator=generator) * scales

    def fresh(num: int) -> Moments:
        return Moments.of(torch.randn(num, 16, generator=generator) * scales)

    for num_samples in (200, 1600):
        floor = frechet.bootstrap_floor(real, num_samples=num_samples, num_draws=40, seed=0)
        truth = [frechet.moments_distance(fresh(num_samples), fresh(400)) for _ in range(40)]
        assert statistics.fmean(floor) == pytest.approx(statistics.fmean(truth), rel=0.15)


def test_floor_depends_on_its_seed_alone():
    real = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    first, again, other = (frechet.bootstrap_floor(real, num_samples=30, num_draws=3, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("num_samples", [12, 30, 400])
def test_gaussian_floor_agrees_with_the_distance_of_drawn_gaussians(num_samples):
    generator = torch.Generator().manual_seed(5)
    mean, covariance = gaussian(6, 16, 16)
    root = torch.linalg.cholesky(covariance)

    def drawn() -> Moments:
        return Moments.of(mean + torch.randn(num_samples, 16, generator=generator, dtype=torch.float64) @ root.T)

    truth = []
    for _ in range(200):
        moments = drawn()
        truth.append(frechet.frechet_distance(moments.mean, moments.covariance, mean, covariance))
    found = frechet.gaussian_floor(mean, covariance, num_samples=num_samples, num_draws=200, seed=0)
    error = statistics.stdev(truth) * (2 / 200) ** 0.5
    assert abs(statistics.fmean(found) - statistics.fmean(truth)) < 3.5 * error
    assert statistics.stdev(found) == pytest.approx(statistics.stdev(truth), rel=0.3)
    assert found[:3] == frechet.gaussian_floor(mean, covariance, num_samples=num_samples, num_draws=3, seed=0)


def test_gaussian_floor_of_one_point_vanishes_and_of_one_sample_is_undefined():
    mean, covariance = gaussian(7, 8, 0)
    assert max(frechet.gaussian_floor(mean, covariance, num_samples=5, num_draws=2, seed=0)) < 1e-12
    with pytest.raises(ValueError, match="covariance of 1 samples"):
        frechet.gaussian_floor(mean, covariance, num_samples=1, num_draws=2, seed=0)


@pytest.mark.parametrize(("num", "size"), [(40, 6), (5, 30)])
def test_distance_of_samples_equals_that_of_their_moments(num, size):
    random = torch.Generator().manual_seed(0)
    features, other = torch.randn(num, size, generator=random), 0.5 + torch.randn(num + 3, size, generator=random)
    expected = frechet.moments_distance(Moments.of(features), Moments.of(other))
    assert frechet.sample_distance(features, other) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet.sample_distance(features[:1], other)
