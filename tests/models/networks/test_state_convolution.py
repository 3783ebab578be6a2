"""Convolution along states: the Fourier transform of torch, no change at first, networks that have it."""

import pytest
import torch

from dmd.models import loading
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build, extended
from dmd.models.networks.state_convolution import StateConvolution

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
UNET = {"resolution": 4, "channels": 2, "width": 16, "multipliers": [1, 1], "blocks": 1}
UNET |= {"attention": [2], "num_classes": 3}
NETWORKS = [MLP, *({"kind": kind, **UNET} for kind in ("ddpmpp", "ncsnpp"))]


@pytest.mark.parametrize("num_states", [2, 3, 4, 5])
def test_convolution_multiplies_the_fourier_transform_along_the_states(num_states):
    torch.manual_seed(0)
    layer = StateConvolution(3, num_states)
    layer.weight.data.normal_()
    hidden = torch.randn(2, num_states, 3, 2, 2)
    spectrum = torch.fft.rfft(hidden, dim=1)
    mixed = torch.einsum("koc,bkchw->bkohw", torch.complex(*layer.weight.data), spectrum)
    expected = hidden + torch.nn.functional.silu(torch.fft.irfft(mixed, n=num_states, dim=1))
    torch.testing.assert_close(layer(hidden.flatten(0, 1)).unflatten(0, (2, num_states)), expected)


def test_convolution_changes_nothing_at_first_and_has_a_gradient():
    layer, hidden = StateConvolution(3, 4), torch.randn(8, 3, 2, 2)
    found = layer(hidden)
    assert torch.equal(found, hidden)
    found.square().sum().backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.any())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["kind"])
def test_network_gives_its_own_x0_as_all_states_at_first_and_then_different_ones(network):
    torch.manual_seed(1)
    before = Denoiser(build(network), sigma_data=0.5).eval()
    for parameter in before.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape)
    after = loading.extended(before, network, states=3)
    image, label = torch.randn(2, 2, network["resolution"], network["resolution"]), torch.tensor([0, 2])
    sigma = torch.tensor([0.5, 3.0])
    with torch.no_grad():
        x0, states = before(image, sigma, label), after.path(image, sigma, label)
        torch.testing.assert_close(states, x0[:, None].expand_as(states), rtol=1e-4, atol=1e-5)
        for name, parameter in after.named_parameters():
            if "second_time" in name or "state_convolution" in name:
                parameter.data.normal_()
        states = after.path(image, sigma, label)
        assert torch.equal(after(image, sigma, label), states[:, -1])
        torch.testing.assert_close(after.path(image[1:], sigma[1:], label[1:]), states[1:], rtol=1e-4, atol=1e-5)
    assert min(float((states[:, i] - states[:, j]).abs().max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"states": 4}, "states: 4, but a network of several states needs second_time"),
        ({"second_time": True, "states": 65}, "states: 65 is no integer from 1 to 64"),
        ({"second_time": True, "states": True}, "states: True is no integer"),
    ],
)
@pytest.mark.parametrize("network", NETWORKS[:2], ids=lambda network: network["kind"])
def test_network_refuses_numbers_of_states_that_it_cannot_give(network, changed, message):
    with pytest.raises(ValueError, match=message):
        build({**network, **changed})


def test_networks_of_others_cannot_give_several_states():
    with pytest.raises(ValueError, match="network 'unet2d' cannot"):
        extended({"kind": "unet2d", "config": {}}, states=4)
