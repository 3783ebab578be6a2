"""The matching gradient: autograd against the closed form, and against the analytic KL of Gaussians."""

import numpy as np
import pytest
import torch

from dmd.methods.parts.matching import FLOOR, WEIGHTINGS, matching_gradient, matching_loss
from dmd.models.denoiser import GaussianMixtureDenoiser
from tests.quadrature import PRODUCT, SIGMA, exact, parameters, world

SHAPE = (3, 2, 4, 5)


def draws(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, real, fake = torch.randn(3, *SHAPE, generator=generator).unbind()
    alpha, sigma = torch.rand(2, 3, generator=generator).add(0.1).unbind()
    return {"image": image, "real_x0": real, "fake_x0": fake, "alpha": alpha, "sigma": sigma}


@pytest.mark.parametrize("alpha_factor", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_autograd_gradient_equals_the_closed_form(weighting, alpha_factor):
    found = draws()
    image = found["image"].clone().requires_grad_()
    tensors = [found[name] for name in ("real_x0", "fake_x0")]
    levels = {name: found[name] for name in ("alpha", "sigma")}
    gradient, factor = matching_gradient(
        image.detach(), *tensors, **levels, weighting=weighting, alpha_factor=alpha_factor
    )
    (autograd,) = torch.autograd.grad(matching_loss(image, gradient), image)
    for place in range(3):
        one = {name: tensor[place] for name, tensor in found.items()}
        sigma, alpha = float(one["sigma"]), float(one["alpha"])
        weight = {  # w_t of Eq. 7
            "eq8": sigma**2 / alpha / float((one["image"] - one["real_x0"]).abs().mean()),
            "sigma/alpha": sigma / alpha,
            "sigma3/alpha": sigma**3 / alpha,
            "sigma2/alpha": sigma**2 / alpha,
        }[weighting]
        scale = weight * alpha * alpha / sigma**2 / (1 if alpha_factor else alpha)
        expected = scale * (one["fake_x0"] - one["real_x0"])
        torch.testing.assert_close(autograd[place] * image.numel(), expected, rtol=1e-4, atol=1e-5)
        assert float(factor[place]) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 2.0, 20.0])
def test_expected_gradient_with_sigma_squared_is_the_analytic_kl_gradient(sigma):
    """Generator x = mean + std z, so the fake score is that of N(mean, std^2); exact by Gauss-Hermite quadrature."""
    mean, std, real_mean, real_std = 0.7, 0.5, -0.4, 0.9
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z, epsilon = (torch.tensor(axis.ravel()) for axis in np.meshgrid(nodes, nodes))
    weight = torch.tensor(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    parameters = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)
    image = (parameters[0] + parameters[1] * z).reshape(-1, 1, 1, 1)
    level = torch.full((64,), sigma, dtype=torch.float64)
    noised = image.detach() + sigma * epsilon.reshape(image.shape)
    real_x0, fake_x0 = (
        GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), centre), torch.tensor([spread]).double(), torch.ones(1))(
            noised, level, torch.full((64,), -1)
        )
        for centre, spread in ((real_mean, real_std), (mean, std))
    )
    gradient, _ = matching_gradient(
        image.detach(), real_x0, fake_x0, alpha=torch.ones_like(level), sigma=level, weighting="sigma2/alpha"
    )
    (per_image,) = torch.autograd.grad(matching_loss(image, gradient), image, retain_graph=True)
    expected = per_image * 64 * weight.reshape(image.shape)
    found = torch.autograd.grad(image, parameters, expected)[0] / sigma**2
    real_variance, fake_variance = real_std**2 + sigma**2, std**2 + sigma**2
    closed = [(mean - real_mean) / real_variance, std * (1 / real_variance - 1 / fake_variance)]
    torch.testing.assert_close(found, torch.tensor(closed).double(), rtol=1e-3, atol=1e-7)
    # and the closed form is the derivative of KL(N(mean, fake_variance) || N(real_mean, real_variance))
    centre, spread = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True).unbind()
    fake = torch.distributions.Normal(centre, (spread**2 + sigma**2).sqrt())
    real = torch.distributions.Normal(torch.tensor(real_mean).double(), real_variance**0.5)
    kl = torch.distributions.kl_divergence(fake, real)
    torch.testing.assert_close(torch.stack(torch.autograd.grad(kl, (centre, spread))), torch.tensor(closed).double())


def test_expected_gradient_with_sigma_squared_is_that_of_the_reverse_kl_to_a_mixture():
    image, real_x0, fake_x0 = world(theta := parameters(), exact())
    level = torch.full((len(image),), SIGMA).double()
    estimates = image.detach(), real_x0.detach(), fake_x0.detach()
    gradient, _ = matching_gradient(*estimates, alpha=torch.ones_like(level), sigma=level, weighting="sigma2/alpha")
    (each,) = torch.autograd.grad(matching_loss(image, gradient), image, retain_graph=True)
    weighted = len(image) * PRODUCT.reshape(image.shape) * each
    (found,) = torch.autograd.grad(image, theta, weighted)
    torch.testing.assert_close(found / SIGMA**2, torch.tensor((0.03556, -0.41666)).double(), rtol=0, atol=1e-5)


def test_eq8_only_rescales_the_kl_gradient_of_each_sample():
    found = draws()
    normalised, factor = matching_gradient(**found, weighting="eq8")
    plain, _ = matching_gradient(**found, weighting="sigma2/alpha")
    torch.testing.assert_close(normalised, plain * factor[:, None, None, None])
    assert (factor > 0).all() and len(factor.unique()) == 3


def test_descending_the_loss_moves_images_from_fake_to_real():
    found = draws()
    found["real_x0"] = found["fake_x0"] + 1.0
    image = found["image"].clone().requires_grad_()
    gradient, _ = matching_gradient(**found)
    matching_loss(image, gradient).backward()
    assert (image.grad < 0).all()


def test_normaliser_of_eq8_has_a_floor_and_the_gradient_stays_finite():
    found = draws()
    found["real_x0"] = found["image"].clone()
    gradient, factor = matching_gradient(**found)
    torch.testing.assert_close(factor, torch.full((3,), 1 / FLOOR))
    assert gradient.isfinite().all()


def test_normaliser_is_per_sample():
    found = draws()
    alone, _ = matching_gradient(**{name: tensor[:1] for name, tensor in found.items()})
    found["real_x0"][1:] *= 100
    together, _ = matching_gradient(**found)
    assert torch.equal(alone[0], together[0])


def test_non_finite_estimates_are_not_hidden():
    found = draws()
    found["real_x0"][1] = torch.nan
    gradient, _ = matching_gradient(**found)
    assert gradient.flatten(1).isfinite().all(1).tolist() == [True, False, True]


def test_gradient_is_computed_in_float32():
    found = {name: tensor.bfloat16() for name, tensor in draws().items()}
    gradient, factor = matching_gradient(**found)
    assert gradient.dtype == factor.dtype == torch.float32


def test_gradient_refuses_shapes_that_would_broadcast_and_unknown_weightings():
    found = draws()
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 5\), \(3, 1, 4, 5\), \(3, 2, 4, 5\)"):
        matching_gradient(**found | {"real_x0": found["real_x0"][:, :1]})
    with pytest.raises(ValueError, match="'eq9'.*sigma3/alpha"):
        matching_gradient(**found, weighting="eq9")
