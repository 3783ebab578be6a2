"""Weights of f-divergences: h and its slope, and the ratio of a discriminator's logits."""

import pytest
import torch

from dmd.methods.parts.divergences import DIVERGENCES, density_ratio

FORMS = {
    "reverse-kl": lambda r: -r.log(),
    "softened-reverse-kl": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "squared-hellinger": lambda r: 2 * (1 - r.sqrt()) ** 2,
    "forward-kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 - r) ** 2 / (2 * r),
}


@pytest.mark.parametrize("name", FORMS)
def test_weight_is_r_squared_times_the_second_derivative_of_a_convex_function_that_is_0_at_1(name):
    ratio = torch.tensor([0.1, 0.7, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    value = FORMS[name](ratio)
    assert abs(float(value[2].detach())) < 1e-15
    (first,) = torch.autograd.grad(value.sum(), ratio, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), ratio)
    torch.testing.assert_close(DIVERGENCES[name].weight(ratio.detach()), ratio.detach() ** 2 * second)


@pytest.mark.parametrize("name", FORMS)
def test_slope_is_the_derivative_of_the_weight_by_the_logarithm_of_the_ratio(name):
    logarithm = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64, requires_grad=True)
    weight = DIVERGENCES[name].weight(logarithm.exp())
    slope = DIVERGENCES[name].slope(logarithm.detach().exp())
    if name == "reverse-kl":
        assert not slope.any() and torch.equal(weight, torch.ones(5).double())
        return
    torch.testing.assert_close(slope, torch.autograd.grad(weight.sum(), logarithm)[0])


def test_ratio_is_the_exponential_of_the_logit_and_constant_beyond_its_bounds():
    logits = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0], requires_grad=True)
    ratio = density_ratio(logits)
    torch.testing.assert_close(ratio, torch.tensor([0.1, 0.36788, 1.0, 7.38906, 20.0]))
    (slope,) = torch.autograd.grad(ratio.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.36788, 1.0, 7.38906, 0.0]))
