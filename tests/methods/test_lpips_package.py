"""`Lpips` against the lpips package's own sum and its own heads, on VGG16 from a file of the released layout."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dmd import torchvision_operators
from dmd.methods.parts.distances import Lpips
from tests.vgg_files import CLASSIFIER, LAYERS, write_vgg

pytestmark = pytest.mark.filterwarnings("ignore:.*weights.*:UserWarning:torchvision")


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory) -> Path:
    return write_vgg(tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth")


@pytest.fixture(scope="module")
def package(vgg_file):
    """lpips.LPIPS with its own heads and the trunk of the file."""
    torchvision_operators.ensure()
    import lpips

    distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = torch.load(vgg_file, weights_only=True)
    layers = [module for part in distance.net.children() for module in part if isinstance(module, torch.nn.Conv2d)]
    for layer, module in zip(LAYERS, layers, strict=True):
        module.load_state_dict({kind: trunk[f"features.{layer}.{kind}"] for kind in ("weight", "bias")})
    return distance


@pytest.fixture(scope="module")
def ours(vgg_file):
    """Our class, of a pooling and a size, with the heads that the package brings."""
    import lpips

    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True
    )
    trunk = torch.load(vgg_file, weights_only=True)
    return lambda pooling, size: Lpips(trunk, heads, pooling=pooling, size=size)


def images(size: int, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images in [-1, 1] and the same with a little noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(num, 3, 6, 6, generator=generator) * 2 - 1
    image = functional.interpolate(coarse, size=size, mode="bicubic").clamp(-1, 1)
    return image, (image + 0.2 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(("size", "num"), [(64, 3), (224, 1)])
def test_lpips_with_max_pooling_equals_the_package(package, ours, size, num):
    image, reference = images(size, num)
    found = ours("max", size)(image, reference)
    expected = package(image, reference)
    assert expected.min() > 1e-3
    torch.testing.assert_close(found, expected.mean(), rtol=1e-5, atol=1e-7)
    shifted = package((image + 1) / 2, (reference + 1) / 2, normalize=True)  # its flag for images in [0, 1]
    torch.testing.assert_close(found, shifted.mean(), rtol=1e-4, atol=1e-7)


def test_lpips_enlarges_images_before_the_network_as_the_papers_do(package, ours):
    image, reference = images(32, 2)
    enlarged = [functional.interpolate(each, size=(64, 64), mode="bilinear") for each in (image, reference)]
    torch.testing.assert_close(ours("max", 64)(image, reference), package(*enlarged).mean(), rtol=1e-5, atol=1e-7)


def test_lpips_gradient_equals_the_packages(package, ours):
    image, reference = images(64, 2)
    gradients = []
    for distance in (ours("max", 64), package):
        moved = image.clone().requires_grad_()
        distance(moved, reference).mean().backward()
        gradients.append(moved.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-8)


def test_lpips_with_average_pooling_is_the_package_with_its_poolings_replaced(package, ours):
    image, reference = images(64, 2)
    replaced = [(part, name) for part in package.net.children() for name, module in part.named_children()]
    poolings = [(part, name) for part, name in replaced if isinstance(part._modules[name], torch.nn.MaxPool2d)]
    try:
        for part, name in poolings:
            part._modules[name] = torch.nn.AvgPool2d(2, 2)
        expected = package(image, reference).mean()
    finally:
        for part, name in poolings:
            part._modules[name] = torch.nn.MaxPool2d(2, 2)
    assert len(poolings) == 4
    torch.testing.assert_close(ours("average", 64)(image, reference), expected, rtol=1e-5, atol=1e-7)


def test_file_has_the_names_and_shapes_of_torchvisions(vgg_file):
    torchvision_operators.ensure()
    import torchvision

    with torch.device("meta"):
        layout = {name: value.shape for name, value in torchvision.models.vgg16().state_dict().items()}
    written = {name: value.shape for name, value in torch.load(vgg_file, weights_only=True).items()}
    classifier = {f"classifier.{layer}.{kind}" for layer in CLASSIFIER for kind in ("weight", "bias")}
    assert written.items() <= layout.items()
    assert layout.keys() - written.keys() == classifier
