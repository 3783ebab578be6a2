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


@pytest.mark.parametrize("kind", ["ddpmpp", "adm"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_has_the_dropout_of_a_plain_pass_with_the_same_seed(kind, channels_last):
    torch.manual_seed(0)
    network = build({"kind": kind, "num_classes": 3, "dropout": 0.2, **UNET, "width": 64})
    for parameter in network.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    denoiser = Denoiser(network, sigma_data=0.5).train()
    if channels_last:
        denoiser = denoiser.to(memory_format=torch.channels_last)
    image, direction = torch.randn(2, 2, 1, 4, 4)
    sigma, label = torch.tensor([0.3, 3.0]), torch.tensor([0, 1])
    torch.manual_seed(3)
    value, _ = forward_derivative(lambda x, s: denoiser(x, s, label), (image, sigma), (direction, torch.ones(2)))
    torch.manual_seed(3)
    torch.testing.assert_close(value, denoiser(image, sigma, label).detach(), rtol=1e-3, atol=1e-4)


def test_derivative_of_what_does_not_depend_on_its_inputs_is_zero():
    value, found = forward_derivative(lambda x: torch.ones(2), (torch.zeros(2),), (torch.ones(2),))
    assert torch.equal(value, torch.ones(2)) and torch.equal(found, torch.zeros(2))
