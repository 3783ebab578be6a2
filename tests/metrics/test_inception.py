"""The Inception network: the bytes it sees, torch-fidelity's features, and when a score may be called by its name."""

import re

import pytest
import torch

from dmd.importers import feature_files
from dmd.metrics.features import build, eight_bit, extract, quantise
from dmd.metrics.inception import SHA256, metric_name
from dmd.metrics.resizing import bicubic

KIND = {"kind": "inception"}


@pytest.fixture(scope="module")
def network(inception_file):
    return feature_files.load(inception_file, KIND, modes=None)[0]


def test_network_sees_the_bytes_that_edm_writes():
    around = torch.arange(-3, 260, dtype=torch.float64)[:, None] + torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    image = ((around - 127.5) / 127.5).float().view(1, 1, -1, 101)
    written = (image * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert torch.equal(eight_bit(quantise(image, 256)), written)
    assert set(written.flatten().tolist()) == set(range(256))


def test_features_are_torch_fidelitys_of_the_same_bytes(network, inception_file):
    from torch_fidelity import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    image = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    written = (image * 127.5 + 128).clip(0, 255).to(torch.uint8)
    features, predicted = extract(network, image, 256)
    torch.testing.assert_close(features, theirs(written)[0], rtol=1e-5, atol=1e-5)
    assert features.shape == (3, 2048) and (predicted == -1).all()
    assert (features.std(0) > 1e-3).double().mean() > 0.5


def test_clean_features_are_torch_fidelitys_of_the_image_that_was_resized_before(network, inception_file):
    from torch_fidelity import FeatureExtractorInceptionV3

    clean, identity = feature_files.load(inception_file, {**KIND, "resize": "clean"}, modes=None)
    assert identity["name"] == "inception-clean"
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    generator = torch.Generator().manual_seed(3)
    large = torch.randint(0, 256, (2, 3, 299, 299), generator=generator).to(torch.uint8)
    expected = theirs(large)[0]  # at 299 x 299 its own resizing changes nothing
    found, _ = extract(clean, large / 127.5 - 1, 256)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    small = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=generator), size=40) * 2 - 1
    before = bicubic(eight_bit(quantise(small, 256)), size=299)
    found, _ = extract(clean, small, 256)
    near, _ = extract(clean, before / 127.5 - 1, 256)  # the same, but for rounding
    inside, _ = extract(network, small, 256)
    assert (found - near).norm() < 0.3 * (found - inside).norm()


def test_grey_images_are_three_equal_channels(network):
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    colour, _ = extract(network, image.repeat(1, 3, 1, 1), 256)
    torch.testing.assert_close(extract(network, image, 256)[0], colour)


def test_network_refuses_other_levels_channels_and_numbers(network):
    with pytest.raises(ValueError, match="needs 256 grey levels, but protocol.quantise is None"):
        extract(network, torch.zeros(1, 3, 8, 8), None)
    with pytest.raises(ValueError, match=r"1 or 3 channels, not of shape \(1, 2, 8, 8\)"):
        extract(network, torch.zeros(1, 2, 8, 8), 256)
    with pytest.raises(ValueError, match="not finite"):
        extract(network, torch.full((1, 3, 8, 8), float("nan")), 256)


def test_build_refuses_weights_of_another_network(inception_file):
    state = torch.load(inception_file, weights_only=True)
    del state["Mixed_6b.branch1x1.conv.weight"]
    with pytest.raises(ValueError, match="not the weights of Inception V3.*Mixed_6b.branch1x1.conv.weight"):
        build(KIND, state=state, modes=None)


def test_layout_is_that_of_the_released_file(inception_file):
    state = torch.load(inception_file, weights_only=True)
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048) and state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)


def test_weights_are_read_without_unpickling_code(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": re.compile("x")}, path)
    with pytest.raises(ValueError, match="weights.pth cannot be read as a file of weights"):
        feature_files.load(path, KIND, modes=None)
    other = tmp_path / "other.pth"
    torch.save([torch.zeros(1)], other)
    with pytest.raises(ValueError, match="holds no dict of names and tensors|something else than tensors"):
        feature_files.load(other, KIND, modes=None)


def test_a_missing_file_is_never_downloaded(tmp_path):
    with pytest.raises(ValueError, match="is missing: put .* there .*2015-12-05-6726825d"):
        feature_files.load(tmp_path / "weights.pth", KIND, modes=None)
    with pytest.raises(ValueError, match="inception needs the file"):
        feature_files.load(None, KIND, modes=None)


def test_only_the_released_weights_make_a_fid():
    names = {"fd": "fid", "kid": "kid", "prdc": "prdc", "is": "inception-score", "classes": "classes-inception"}
    for score, name in names.items():
        assert metric_name(score, {"name": "inception", "sha256": SHA256}) == name
        assert metric_name(score, {"name": "inception", "sha256": "0" * 64}) == f"{score}-inception"
        assert metric_name(score, {"name": "pixels8", "sha256": None}) == f"{score}-pixels8"
    assert metric_name("fd", {"name": "inception", "sha256": SHA256[:8]}) == "fd-inception"
    clean = {"name": "inception-clean", "sha256": SHA256}
    assert [metric_name(score, clean) for score in ("fd", "prdc")] == ["clean-fid", "prdc-inception-clean"]
    assert metric_name("fd", clean | {"sha256": "0" * 64}) == "fd-inception-clean"
