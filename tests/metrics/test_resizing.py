"""Resizing against filters written out as matrices."""

import numpy as np
import pytest
import torch

from dmd.metrics.features import build, eight_bit, extract, quantise
from dmd.metrics.resizing import bicubic, resize


def keys(x: np.ndarray) -> np.ndarray:
    """The cubic kernel of Keys (1981) with a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def lanczos3(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def weights(kernel, num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in): the kernel around each new pixel's centre, no narrower than the new pixels."""
    scale = num_in / num_out
    centres = (np.arange(num_out) + 0.5) * scale
    found = kernel((np.arange(num_in) + 0.5 - centres[:, None]) / max(scale, 1.0))
    return found / found.sum(1, keepdims=True)


def pictures(num: int, channels: int, side: int, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num, channels, side, side), np.uint8))


@pytest.mark.parametrize("side", [32, 64, 500])
def test_bicubic_is_the_clipped_cubic_kernel_of_each_channel_and_is_not_rounded(side):
    image = pictures(2, 3, side)
    matrix = weights(keys, side, 299)
    expected = (matrix @ image.numpy().astype(np.float64) @ matrix.T).clip(0, 255)
    found = bicubic(image, size=299)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 299, 299)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)
    assert (found - found.round()).abs().mean() > 0.1


@pytest.mark.parametrize("side", [8, 32, 256, 299, 500])
def test_bicubic_equals_the_clean_fid_package(side):
    from cleanfid.resize import build_resizer

    image = (pictures(2, 3, side) > 127).to(torch.uint8) * 255  # black and white: overshoot everywhere
    expected = [build_resizer("clean")(each.permute(1, 2, 0).numpy()) for each in image]
    assert torch.equal(bicubic(image, size=299), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("filter", "kernel"), [("lanczos", lanczos3), ("bicubic", keys)])
def test_resized_is_the_kernel_rounded_to_eight_bits(filter, kernel):
    image = pictures(2, 3, 64)
    matrix = weights(kernel, 64, 32)
    across = np.floor(image.numpy() @ matrix.T + 0.5).clip(0, 255)  # each pass ends in 8 bits
    expected = np.floor(matrix @ across + 0.5).clip(0, 255)
    found = resize(image, size=32, filter=filter)
    assert found.dtype == torch.uint8 and found.shape == (2, 3, 32, 32)
    assert np.abs(found.numpy() - expected).max() <= 1 and (found.numpy() == expected).mean() > 0.99


def test_resized_keeps_grey_images_and_those_of_the_size():
    grey = pictures(3, 1, 16)
    assert torch.equal(
        resize(grey, size=8, filter="box"), resize(grey.expand(-1, 3, -1, -1), size=8, filter="box")[:, :1]
    )
    assert torch.equal(resize(grey, size=16, filter="lanczos"), grey)


def test_resized_refuses_what_is_not_square_or_not_known():
    with pytest.raises(ValueError, match="images of 4 x 8 pixels are not square"):
        resize(torch.zeros(1, 3, 4, 8, dtype=torch.uint8), size=2, filter="box")
    with pytest.raises(ValueError, match="'hamming' is none of lanczos"):
        resize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), size=2, filter="hamming")


def test_features_are_those_of_the_images_that_were_resized():
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    network = build({"kind": "pixels", "size": 8}, state=None, modes=None)
    features, _ = extract(network, image, 256, {"size": 6, "filter": "lanczos"})
    small = resize(eight_bit(quantise(image, 256)), size=6, filter="lanczos")
    torch.testing.assert_close(features, (small / 127.5 - 1).flatten(1))
    with pytest.raises(ValueError, match="protocol.quantise must be 256, not None"):
        extract(network, image, None, {"size": 6, "filter": "lanczos"})
