"""Laws of the comparison of a student's images with its teacher's."""

import math

import pytest
import torch

from dmd.metrics import teacher_comparison as comparison
from dmd.metrics.teacher_comparison import CLIP, CONTRAST, DIVERSITY, FEATURES, MEAN, SAME_NOISE, SATURATION, SHARPNESS
from dmd.models.tensor_bytes import Peak

CONDITIONS, SEEDS = 4, 8


def images(seed: int, channels: int = 3) -> torch.Tensor:
    """Smooth colours with some noise; image i has condition i modulo 4, its brightness."""
    random = torch.Generator().manual_seed(seed)
    num = CONDITIONS * SEEDS
    colour = torch.randn(num, channels, 1, 1, generator=random) * 0.2
    texture = torch.randn(num, 1, 16, 16, generator=random) * 0.3
    brightness = (torch.arange(num) % CONDITIONS / 4 - 0.4)[:, None, None, None]
    return brightness + colour + texture


def image_set(image: torch.Tensor, clip: torch.Tensor | None = None) -> comparison.ImageSet:
    return comparison.ImageSet(image.flatten(1), comparison.statistics(image), CONDITIONS, clip)


def compared(student: torch.Tensor, teacher: torch.Tensor, *, same_noise: bool = True) -> dict[str, float]:
    return comparison.compare(image_set(student), image_set(teacher), same_noise=same_noise)


def test_the_same_images_have_ratios_of_one_and_no_distance():
    columns = compared(images(0), images(0))
    assert [columns[name] for name in (CONTRAST, SATURATION, SHARPNESS, DIVERSITY)] == pytest.approx([1.0] * 4)
    assert [columns[name] for name in (MEAN, FEATURES, SAME_NOISE)] == pytest.approx([0.0] * 3, abs=1e-6)


def test_other_noise_is_about_as_far_as_the_halves_and_unrelated():
    columns = compared(images(1), images(0))
    assert 0.3 < columns[FEATURES] < 1.0  # the halves have half as many images, which adds to their distance
    assert columns[SAME_NOISE] == pytest.approx(1.0, abs=0.2)
    assert SAME_NOISE not in compared(images(1), images(0), same_noise=False)


def test_contrast_scales_all_but_sharpness():
    columns = compared(2 * images(0), images(0))
    assert [columns[name] for name in (CONTRAST, SATURATION, DIVERSITY)] == pytest.approx([2.0] * 3)
    assert columns[SHARPNESS] == pytest.approx(1.0) and columns[FEATURES] > 1.0


def test_blur_lowers_sharpness_grey_lowers_saturation_and_light_the_mean():
    blurred = torch.nn.functional.avg_pool2d(images(0), 3, stride=1, padding=1, count_include_pad=False)
    assert compared(blurred, images(0))[SHARPNESS] < 0.7
    grey = images(0).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert compared((images(0) + grey) / 2, images(0))[SATURATION] == pytest.approx(0.5)
    teacher = image_set(images(0))
    assert compared(images(0) + 0.1, images(0))[MEAN] == pytest.approx(0.1 / teacher.contrast, rel=1e-4)


def test_equal_seeds_have_no_diversity():
    one = images(0)[:CONDITIONS].repeat(SEEDS, 1, 1, 1)
    columns = compared(one, images(0))
    assert (
        columns[DIVERSITY] == pytest.approx(0.0, abs=1e-9)
        and columns[FEATURES] > compared(images(1), images(0))[FEATURES]
    )


def test_diversity_is_within_conditions():
    """Images of two conditions differ, those of one do not."""
    apart = image_set((torch.arange(CONDITIONS * SEEDS) % CONDITIONS).float()[:, None, None, None].expand(-1, 3, 4, 4))
    assert apart.diversity == 0.0 and apart.contrast > 1


def test_diversity_of_many_images_is_the_mean_over_all_pairs_in_little_memory():
    features = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    many = comparison.ImageSet(features, torch.zeros(600, 4), 1)
    with Peak() as peak:
        found = many.diversity
    assert found == pytest.approx(float(torch.nn.functional.pdist(features.double()).mean()))
    assert 0 < peak.most < 600 * 600 * 8  # less than all distances


def test_what_images_lack_has_no_column():
    grey = compared(images(1, channels=1), images(0, channels=1))
    assert SATURATION not in grey and SHARPNESS in grey and CLIP not in grey
    points = compared(torch.randn(32, 2, 1, 1), torch.randn(32, 2, 1, 1))
    assert not {SATURATION, SHARPNESS} & points.keys() and {CONTRAST, DIVERSITY, FEATURES} <= points.keys()


def test_clip_is_the_difference_of_mean_cosines():
    student, teacher = (image_set(images(0), torch.full((32,), value)) for value in (0.3, 0.25))
    assert comparison.compare(student, teacher, same_noise=False)[CLIP] == pytest.approx(0.05, rel=1e-5)


def test_images_that_are_not_finite_have_no_finite_column():
    broken = images(0)
    broken[3] = math.nan
    assert all(math.isnan(value) for value in compared(broken, images(0)).values())
