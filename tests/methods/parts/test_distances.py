"""Regression distances: LPIPS against an independent VGG of torch modules, l2 and l1."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dmd.methods.parts import distances
from dmd.methods.parts.distances import Lpips, l1_distance, l2_distance, lpips_shapes

# Layers of VGG16's `features`: convolutions up to relu1_2, 2_2, 3_3, 4_3 and 5_3, a pooling layer between groups.
GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet, in [0, 1]


@pytest.fixture(scope="module")
def vgg() -> nn.Sequential:
    """VGG16's `features` as torchvision numbers them, with random weights that keep activations alive."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for number, (group, width) in enumerate(zip(GROUPS, WIDTHS, strict=True)):
        if number:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in group:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            weight = layers[-2].weight.data
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5)
            channels = width
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def weights(vgg) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(1)
    heads = {
        f"lin{place}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for place, width in enumerate(WIDTHS)
    }
    return {f"features.{name}": value for name, value in vgg.state_dict().items()}, heads


def images(channels: int = 3, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.rand(2, 2, channels, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return both[0], both[1]


def published(vgg: nn.Sequential, heads: dict, image: torch.Tensor, reference: torch.Tensor, size: int) -> torch.Tensor:
    """Zhang et al. 2018, Eq. 1, pixel by pixel of each layer; mean over the batch."""
    total = torch.zeros(())
    for x, y in zip(image, reference, strict=True):
        x, y = (
            functional.interpolate(one[None], size=(size, size), mode="bilinear", align_corners=False) for one in (x, y)
        )
        x, y = (((one + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None] for one in (x, y))
        for number, layer in enumerate(vgg):
            x, y = layer(x), layer(y)
            taken = [group[-1] + 1 for group in GROUPS]
            if number in taken:
                head = heads[f"lin{taken.index(number)}.model.1.weight"].flatten()
                difference = functional.normalize(x[0], dim=0) - functional.normalize(y[0], dim=0)
                total += (head[:, None, None] * difference.square()).sum(0).mean()
    return total / len(image)


@pytest.mark.parametrize(("pooling", "size"), [("max", 16), ("max", 32), ("average", 16), ("average", 32)])
def test_lpips_and_its_gradient_are_the_published_ones_with_either_pooling(vgg, weights, pooling, size):
    layers = [nn.AvgPool2d(2) if isinstance(one, nn.MaxPool2d) and pooling == "average" else one for one in vgg]
    image, reference = images()
    expected, got = image.clone().requires_grad_(), image.clone().requires_grad_()
    formula = published(nn.Sequential(*layers), weights[1], expected, reference, size)
    distance = Lpips(*weights, pooling=pooling, size=size)(got, reference)
    torch.testing.assert_close(distance, formula, rtol=2e-3, atol=0)  # the package rounds ImageNet's numbers
    formula.backward()
    distance.backward()
    assert (got.grad - expected.grad).norm() < 0.02 * expected.grad.norm()


def test_lpips_gradient_is_finite_where_no_feature_is_above_zero(weights):
    trunk, heads = weights
    silent = {**trunk, "features.2.bias": torch.full_like(trunk["features.2.bias"], -1e3)}
    image, reference = images()
    image.requires_grad_()
    Lpips(silent, heads, pooling="average", size=16)(image, reference).backward()
    assert image.grad.isfinite().all()


def test_lpips_draws_nothing_from_torchs_generator_and_names_the_shapes_of_its_weights(weights):
    before = torch.random.get_rng_state()
    Lpips(*weights, pooling="max", size=16)
    assert torch.equal(before, torch.random.get_rng_state())
    shapes = [{name: value.shape for name, value in group.items()} for group in weights]
    assert [*lpips_shapes()] == shapes


def test_lpips_pooling_matters_and_equal_images_are_at_zero(weights):
    image, reference = images()
    average, maximum = (Lpips(*weights, pooling=pooling, size=16) for pooling in ("average", "max"))
    assert float(average(image, reference)) > 0
    assert abs(float(average(image, reference) / maximum(image, reference)) - 1) > 0.01
    assert average(image, image) == 0
    torch.testing.assert_close(average(image, reference), average(reference, image))


def test_lpips_takes_grey_images_as_equal_colours_and_has_a_gradient(weights):
    image, reference = images(channels=1)
    distance = Lpips(*weights, pooling="average", size=16)
    image.requires_grad_()
    found = distance(image, reference)
    torch.testing.assert_close(found, distance(image.expand(-1, 3, -1, -1), reference.expand(-1, 3, -1, -1)))
    found.backward()
    assert image.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in distance.parameters())


def test_lpips_in_chunks_is_the_distance_and_gradient_of_the_batch(weights, monkeypatch):
    distance = Lpips(*weights, pooling="average", size=16)
    image, reference = (torch.cat([part, part.flip(0).roll(3, -1)])[:3] for part in images())
    whole = image.clone().requires_grad_()
    direct = distance.total(whole, reference) / 3
    direct.backward()
    monkeypatch.setattr(distances, "CHUNK", 2)
    chunked = image.clone().requires_grad_()
    found = distance(chunked, reference)
    (0.25 * found).backward()
    torch.testing.assert_close(found, direct)
    torch.testing.assert_close(chunked.grad, 0.25 * whole.grad, rtol=1e-4, atol=1e-7)
    assert whole.grad.abs().min(0).values.sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(distance(image, reference), direct.detach())


def test_lpips_refuses_bad_numbers_and_foreign_weights(weights):
    trunk, heads = weights
    with pytest.raises(ValueError, match="'median'"):
        Lpips(trunk, heads, pooling="median", size=64)
    with pytest.raises(ValueError, match="16 pixels, got 8"):
        Lpips(trunk, heads, pooling="max", size=8)
    with pytest.raises(ValueError, match="features.0.weight and 25 more"):
        Lpips({}, heads, pooling="max", size=64)
    for other in ("features.30.weight", "features.1.running_mean", "module"):
        with pytest.raises(ValueError, match=f"hold {other}, which VGG16"):
            Lpips({**trunk, other: torch.ones(1)}, heads, pooling="max", size=64)
    Lpips({**trunk, "classifier.6.bias": torch.ones(1000)}, heads, pooling="max", size=64)
    with pytest.raises(ValueError, match=r"another network: .*slice1.0.weight"):
        Lpips({**trunk, "features.0.weight": torch.ones(64, 1, 3, 3)}, heads, pooling="max", size=64)
    with pytest.raises(ValueError, match=r"\(2, 3, 24, 24\), reference \(2, 1, 24, 24\)"):
        Lpips(trunk, heads, pooling="max", size=16)(images()[0], images(1)[1])


@pytest.mark.parametrize("distance, power", [(l2_distance, 2), (l1_distance, 1)])
def test_l2_and_l1_are_mean_errors_and_refuse_to_broadcast(distance, power):
    image, reference = images()
    torch.testing.assert_close(distance(image, reference), ((image - reference).abs() ** power).sum() / image.numel())
    with pytest.raises(ValueError, match=r"image has shape \(2, 3"):
        distance(image, reference[:, :1])
