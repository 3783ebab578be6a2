"""Random changes of images: each key does what it says, and nothing changes without keys."""

import torch

from dmd.config.pipeline_sections import Augmentation
from dmd.train import augmentation
from dmd.train.augmentation import NUM_VALUES, changed


def values(num: int, **fixed: float) -> torch.Tensor:
    """Random values at the middle (no change) but for those named: share, angle, size, mirror, right, down."""
    names = ("share", "angle", "size", "mirror", "right", "down")
    drawn = torch.full((num, NUM_VALUES), 0.5, dtype=torch.float64)
    for name, value in fixed.items():
        drawn[:, names.index(name)] = value
    return drawn


def picture() -> torch.Tensor:
    """A white picture with one dark pixel at row 2, column 3 of 8."""
    image = torch.ones(1, 3, 8, 8)
    image[:, :, 2, 3] = -1
    return image


def test_without_keys_an_image_stays_the_same_object():
    image = picture()
    assert changed(image, Augmentation(), augmentation.draw(1, torch.Generator())) is image


def test_middle_values_change_nothing():
    section = Augmentation(shift=0.25, scale=0.3, rotation=30.0, colour=0.2)
    assert torch.allclose(changed(picture(), section, values(1)), picture(), atol=1e-5)


def test_shift_moves_by_its_part_of_the_side_and_the_border_is_repeated():
    moved = changed(picture(), Augmentation(shift=0.25), values(1, right=1.0, down=0.0))  # two pixels
    dark = (moved[0, 0] < 0).nonzero()
    assert dark.tolist() == [[4, 1]] and moved.max() == 1


def test_mirror_and_half_turn():
    mirrored = changed(picture(), Augmentation(flip=True), values(1, mirror=0.0))
    assert torch.allclose(mirrored, picture().flip(3), atol=1e-5)
    turned = changed(picture(), Augmentation(rotation=180.0), values(1, angle=1.0))
    assert torch.allclose(turned, picture().flip(2, 3), atol=1e-4)


def test_scale_enlarges_about_the_middle():
    image = torch.ones(1, 1, 8, 8)
    image[:, :, 3:5, 3:5] = -1
    larger = changed(image, Augmentation(scale=0.9), values(1, size=1.0))
    assert (larger < 0).sum() > 2 * (image < 0).sum()


def test_share_changes_only_some_images_and_colour_stays_within_range():
    random = torch.Generator().manual_seed(0)
    images = torch.rand(400, 3, 4, 4, generator=random) * 2 - 1
    drawn = augmentation.draw(400, random)
    after = changed(images, Augmentation(share=0.25, colour=0.5), drawn)
    same = (after == images).flatten(1).all(1)
    assert 0.6 < same.float().mean() < 0.9 and after.abs().max() <= 1
