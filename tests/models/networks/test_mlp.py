"""The network for points."""

from typing import Any

import pytest
import torch
from torch import nn

from dmd.models.networks import build

POINTS: dict[str, Any] = {
    "kind": "mlp",
    "resolution": 1,
    "channels": 2,
    "width": 16,
    "layers": 3,
    "num_classes": 4,
}


def randomised(architecture: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = build(architecture)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(("channels", "resolution"), [(2, 1), (1, 4)])
def test_mlp_returns_the_shape_of_its_input(channels: int, resolution: int) -> None:
    network = randomised(POINTS | {"channels": channels, "resolution": resolution})
    image = torch.randn(5, channels, resolution, resolution)
    output = network(image, torch.randn(5), torch.tensor([-1, 0, 1, 2, 3]))
    assert output.shape == image.shape
    assert output.dtype == torch.float32


def test_mlp_cast_to_half_precision_computes_in_it() -> None:
    network = randomised(POINTS)
    image, noise_condition, label = torch.randn(5, 2, 1, 1), torch.randn(5), torch.tensor([-1, 0, 1, 2, 3])
    expected = network(image, noise_condition, label)
    found = network.to(torch.float16)(image.half(), noise_condition, label)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_mlp_starts_at_zero_and_learns_through_every_layer() -> None:
    image, label = torch.randn(3, 2, 1, 1), torch.tensor([-1, 0, 3])
    output = build(POINTS)(image, torch.zeros(3), label)
    assert torch.equal(output, torch.zeros_like(image))
    network = randomised(POINTS)
    network(image, torch.zeros(3), label).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mlp_row_does_not_depend_on_the_other_rows() -> None:
    network = randomised(POINTS)
    image, noise_condition, label = torch.randn(4, 2, 1, 1), torch.randn(4), torch.arange(4)
    with torch.no_grad():
        together = network(image, noise_condition, label)
        for row in range(4):
            alone = network(image[row : row + 1], noise_condition[row : row + 1], label[row : row + 1])
            torch.testing.assert_close(alone, together[row : row + 1])


def test_mlp_uses_the_noise_condition_and_the_label() -> None:
    network = randomised(POINTS)
    image = torch.ones(2, 2, 1, 1)
    with torch.no_grad():
        by_noise = network(image, torch.tensor([0.0, 0.5]), torch.zeros(2, dtype=torch.int64))
        by_label = network(image, torch.zeros(2), torch.tensor([-1, 2]))
        network.label.weight.zero_()
        without = network(image, torch.zeros(2), torch.tensor([-1, 2]))
    assert not torch.allclose(by_noise[0], by_noise[1])
    assert not torch.allclose(by_label[0], by_label[1])
    torch.testing.assert_close(without[0], without[1])
    torch.testing.assert_close(without[0], by_label[0])


def test_unconditional_mlp_ignores_labels() -> None:
    network = randomised(POINTS | {"num_classes": 0})
    image, noise_condition = torch.randn(2, 2, 1, 1), torch.zeros(2)
    with torch.no_grad():
        outputs = [network(image, noise_condition, torch.tensor(label)) for label in ([-1, -1], [0, 5])]
    assert torch.equal(*outputs)


def test_mlp_parameter_count_follows_width_and_layers() -> None:
    network = build(POINTS | {"width": 16, "layers": 3, "num_classes": 4})
    first, hidden, last = (2 + 32) * 16 + 16, 2 * (16 * 16 + 16), 16 * 2 + 2
    assert sum(p.numel() for p in network.parameters()) == first + 4 * 16 + hidden + last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: 0 is no integer from 1 up"),
        ({"layers": True}, "layers: True is no integer from 1 up"),
        ({"num_classes": -1}, "num_classes: -1 is no integer from 0 up"),
        ({"multipliers": [1]}, "network mlp: unknown multipliers; known are channels"),
    ],
)
def test_bad_mlp_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(POINTS | change)


def test_point_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 1\) is not \(B, 2, 1, 1\)"):
        build(POINTS)(torch.zeros(2, 3, 1, 1), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
