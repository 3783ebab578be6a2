"""Denoisers against brute force and against the limits of the preconditioning."""

import math

import pytest
import torch
from torch import nn

from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample

NO_LABEL = torch.tensor([-1])


class Recorder(nn.Module):
    """F_theta that keeps what it was given and answers with `gain` times its image."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, image, noise_condition, label):
        self.image, self.noise_condition, self.label = image, noise_condition, label
        return self.gain * image


def mixture() -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.0, -2.0]]).reshape(3, 2, 1, 1)
    return GaussianMixtureDenoiser(means, torch.tensor([0.5, 0.7, 0.4]), torch.tensor([0.5, 0.2, 0.3]))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_mixture_denoiser_is_the_posterior_mean_by_quadrature(sigma):
    exact = mixture()
    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)  # x0 on a grid
    distance = (points[:, None] - exact.means.flatten(1)).square().sum(-1)
    density = (exact.weights / exact.stds.square() * (-0.5 * distance / exact.stds.square()).exp()).sum(-1)
    image = torch.tensor([[0.2, -0.3], [2.0, 1.0], [-4.0, 3.0]], dtype=torch.float64)
    found = exact(image.reshape(3, 2, 1, 1), torch.full((3,), sigma, dtype=torch.float64), NO_LABEL.expand(3))
    for one, x0 in zip(image, found.reshape(3, 2), strict=True):
        weight = density * (-0.5 * (one - points).square().sum(-1) / sigma**2).exp()
        torch.testing.assert_close(x0, (weight[:, None] * points).sum(0) / weight.sum(), rtol=1e-6, atol=1e-6)


def test_mixture_of_one_is_the_linear_denoiser_of_a_gaussian():
    mean, std = torch.tensor([0.3, -0.2]).double().reshape(1, 2, 1, 1), 0.8
    exact = GaussianMixtureDenoiser(mean, torch.tensor([std]).double(), torch.ones(1))
    image, sigma = torch.randn(6, 2, 1, 1).double(), torch.tensor([1e-3, 0.1, 1, 5, 80, 1e4]).double()
    level = per_sample(sigma, image)
    expected = (std**2 * image + level**2 * mean) / (std**2 + level**2)
    torch.testing.assert_close(exact(image, sigma, NO_LABEL.expand(6)), expected)


def test_mixture_of_one_pulls_a_number_towards_its_mean_by_the_share_of_the_noise():
    """D(2; 3) of N(0.3, 0.5^2) is (0.25 * 2 + 9 * 0.3) / 9.25."""
    exact = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), 0.3).double(), torch.tensor([0.5]), torch.ones(1))
    found = exact(torch.full((1, 1, 1, 1), 2.0).double(), torch.tensor([3.0]), NO_LABEL)
    assert found.item() == pytest.approx(0.345946, abs=1e-6)


def test_mixture_denoiser_is_finite_far_from_all_modes_and_keeps_its_input_type():
    image = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1)
    for sigma in (1e-3, 80.0, 1e6):
        found = mixture()(image, torch.tensor([sigma]), NO_LABEL)
        assert found.dtype == torch.float32 and found.isfinite().all()


def test_mixture_denoiser_refuses_counts_that_differ():
    with pytest.raises(ValueError, match="2 means, 1 stds and 2 weights"):
        GaussianMixtureDenoiser(torch.zeros(2, 1, 1, 1), torch.ones(1), torch.ones(2))


def test_preconditioned_network_sees_unit_variance_and_a_quarter_of_the_log():
    network, sigma_data = Recorder(0.0), 0.5
    sigma = torch.tensor([0.01, 0.5, 80.0])
    generator = torch.Generator().manual_seed(0)
    image = sigma_data * torch.randn(3, 1, 100, 100, generator=generator)
    noised = image + per_sample(sigma, image) * torch.randn(3, 1, 100, 100, generator=generator)
    Denoiser(network, sigma_data=sigma_data)(noised, sigma, torch.tensor([2, 1, 0]))
    torch.testing.assert_close(network.image.std((1, 2, 3)), torch.ones(3), rtol=0.03, atol=0)
    torch.testing.assert_close(network.noise_condition, sigma.log() / 4)
    assert network.label.tolist() == [2, 1, 0]


@pytest.mark.parametrize("gain", [0.0, 1.0, -3.0])
def test_denoiser_returns_a_clean_image_and_forgets_pure_noise(gain):
    denoiser, sigma_data = Denoiser(Recorder(gain), sigma_data=0.5), 0.5
    image = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(denoiser(image, torch.full((2,), 1e-6), NO_LABEL), image, rtol=1e-4, atol=1e-4)
    sigma = 1e5
    expected = sigma_data * gain * image  # c_skip -> 0, c_out -> sigma_data, c_in sigma -> 1
    torch.testing.assert_close(
        denoiser(sigma * image, torch.full((2,), sigma), NO_LABEL), expected, rtol=1e-3, atol=1e-4
    )


def test_denoiser_of_a_zero_network_is_the_best_linear_one():
    sigma_data, sigma = 0.5, torch.tensor([0.1, 1.0, 10.0]).double()
    gaussian = GaussianMixtureDenoiser(torch.zeros(1, 1, 2, 2), torch.tensor([sigma_data]), torch.ones(1))
    image = torch.randn(3, 1, 2, 2).double()
    found = Denoiser(Recorder(0.0), sigma_data=sigma_data)(image, sigma, NO_LABEL.expand(3))
    torch.testing.assert_close(found, gaussian(image, sigma, NO_LABEL.expand(3)))


def test_target_of_the_network_has_unit_variance():
    sigma_data = 0.5
    for sigma in (0.01, 0.5, 20.0):
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        residual = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2  # variance of x0 - c_skip x
        image = torch.ones(1, 1, 1, 1).double()
        level = torch.tensor([sigma]).double()
        step = Denoiser(Recorder(1.0), sigma_data=sigma_data)(image, level, NO_LABEL) - c_skip
        c_out = float(step) * math.hypot(sigma, sigma_data)  # step is c_out c_in
        assert residual / c_out**2 == pytest.approx(1, rel=1e-6)
