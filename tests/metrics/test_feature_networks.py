"""Feature networks and the quantisation before them."""

import pytest
import torch

from dmd.metrics.features import CLASSIFIERS, Digits32, build, extract, quantise


def test_quantise_equals_edm_at_256_levels():
    image = torch.linspace(-1.2, 1.2, 100001)
    eight_bit = (image * 127.5 + 128).clip(0, 255).to(torch.uint8)
    torch.testing.assert_close(quantise(image, 256), eight_bit.float() / 127.5 - 1, rtol=0, atol=1e-6)


def test_quantise_leaves_its_own_levels_alone_and_rounds_halves_up():
    levels = torch.arange(17) / 8 - 1
    assert torch.equal(quantise(levels, 17), levels)
    assert torch.equal(quantise(levels[:-1] + 1 / 16, 17), levels[1:])
    assert torch.equal(quantise(torch.tensor([-7.0, 7.0]), 17), torch.tensor([-1.0, 1.0]))
    assert quantise(levels, None) is levels


def test_coordinates_are_the_values_and_the_nearest_mode():
    network = build({"kind": "coordinates"}, state=None, modes=[[0.0, 0.0], [4.0, 0.0]])
    image = torch.tensor([[1.0, 3.0], [2.5, -1.0]])[:, :, None, None]
    features, predicted = extract(network, image, None)
    assert torch.equal(features, image.flatten(1))
    assert predicted.tolist() == [0, 1]
    assert network.num_classes == 2


def test_coordinates_without_modes_predict_no_class():
    network = build({"kind": "coordinates"}, state=None, modes=None)
    _, predicted = extract(network, torch.zeros(3, 2, 1, 1), None)
    assert predicted.tolist() == [-1, -1, -1]


def test_pixels_are_averages_of_equal_areas():
    network = build({"kind": "pixels", "size": 2}, state=None, modes=None)
    image = torch.arange(32.0).view(1, 2, 4, 4)
    features, predicted = extract(network, image, None)
    expected = [image[0, c, y : y + 2, x : x + 2].mean() for c in (0, 1) for y in (0, 2) for x in (0, 2)]
    torch.testing.assert_close(features, torch.stack(expected)[None])
    assert predicted.tolist() == [-1]
    assert network.name == "pixels2"


def test_pixels_keep_smaller_images_as_they_are():
    image = torch.rand(2, 1, 4, 4)
    features, _ = extract(build({"kind": "pixels", "size": 8}, state=None, modes=None), image, None)
    assert torch.equal(features, image.flatten(1))


@pytest.mark.parametrize(("kind", "side", "size"), [("digits32", 8, 32), ("fashion64", 28, 64)])
def test_features_of_a_classifier_do_not_depend_on_the_batch(kind, side, size):
    torch.manual_seed(0)
    network = build({"kind": kind}, state=CLASSIFIERS[kind]().state_dict(), modes=None)
    image = torch.rand(9, 1, side, side) * 2 - 1
    features, predicted = extract(network, image, 17)
    assert features.shape == (9, size) and network.name == kind
    torch.testing.assert_close(extract(network, image[4:5], 17)[0], features[4:5])
    assert torch.equal(predicted, network.head(features).argmax(1))


@pytest.mark.parametrize(
    ("section", "state", "message"),
    [
        ({"kind": "clip"}, None, "'clip' is none of"),
        ({"kind": "digits32"}, None, "needs the file"),
        ({"kind": "digits32"}, {"head.weight": torch.zeros(2, 2)}, "not the weights of digits32"),
        ({"kind": "fashion64"}, Digits32().state_dict(), "not the weights of fashion64"),
    ],
)
def test_build_refuses_what_it_cannot_build(section, state, message):
    with pytest.raises(ValueError, match=message):
        build(section, state=state, modes=None)


def test_networks_refuse_images_of_another_shape():
    digits = build({"kind": "digits32"}, state=Digits32().state_dict(), modes=None)
    with pytest.raises(ValueError, match=r"not \(3, 8, 8\)"):
        extract(digits, torch.zeros(1, 3, 8, 8), None)
    points = build({"kind": "coordinates"}, state=None, modes=[[0.0, 0.0]])
    with pytest.raises(ValueError, match="3 and 2"):
        extract(points, torch.zeros(1, 3, 1, 1), None)
