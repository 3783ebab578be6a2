"""The derivative along a direction, of networks with attention and normalisation too."""

import pytest
import torch

from dmd.methods.parts.forward_derivative import forward_derivative
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build

UNET = {"resolution": 4, "channels": 1, "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2]}


@pytest.mark.parametrize("kind", ["mlp", "ddpmpp", "adm", "ncsnpp"])
def test_derivative_of_a_denoiser_is_the_limit_of_its_differences(kind):
    torch.manual_seed(0)
    network = {"kind": kind, "num_classes": 3, **UNET}
    if kind == "adm":
        network["width"] = 64  # a head of attention
    if kind == "mlp":
        network = {"kind": "mlp", "channels": 1, "resolution": 4, "width": 16, "layers": 2, "num_classes": 3}
    denoiser = Denoiser(build(network), sigma_data=0.5).double().eval()
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    image, direction = torch.randn(2, 3, 1, 4, 4).double()
    sigma, change, label = torch.tensor([0.1, 1.0, 20.0]).double(), torch.randn(3).double(), torch.tensor([0, 1, -1])
    value, found = forward_derivative(lambda x, s: denoiser(x, s, label), (image, sigma), (direction, change))
    step = 1e-6
    above = denoiser(image + step * direction, sigma + step * change, label)
    below = denoiser(image - step * direction, sigma - step * change, label)
    torch.testing.assert_close(found, (above - below) / (2 * step), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, denoiser(image, sigma, label))
    assert not found.requires_grad and not value.requires_grad


def test_derivative_of_what_does_not_depend_on_its_inputs_is_zero():
    value, found = forward_derivative(lambda x: torch.ones(2), (torch.zeros(2),), (torch.ones(2),))
    assert torch.equal(value, torch.ones(2)) and torch.equal(found, torch.zeros(2))
