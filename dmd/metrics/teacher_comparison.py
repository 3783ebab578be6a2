"""How images of a student compare with images of its teacher, for few images of the same conditions.

All numbers are free of scale: ratios to the teacher's own values, or differences in units of its contrast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dmd.metrics.frechet import sample_distance

NUM_STATISTICS = 4
ROWS = 256  # images that are compared with all others at once, which limits memory
RATIO, DISTANCE, DIFFERENCE = "ratio_to_teacher", "distance_to_teacher", "difference_to_teacher"
CONTRAST, SATURATION, SHARPNESS, DIVERSITY = (
    f"{RATIO}/{name}" for name in ("contrast", "saturation", "sharpness", "diversity")
)
FEATURES, SAME_NOISE = f"{DISTANCE}/features", f"{DISTANCE}/same_noise"
MEAN, CLIP = f"{DIFFERENCE}/mean", f"{DIFFERENCE}/clip"


def statistics(image: Tensor) -> Tensor:
    """Means over each image (B, C, H, W): float64 (B, 4).

    These are the mean of its values, of their squares, of the variance of the three channels of a pixel (0 for another
    number of channels), and of the squared difference of neighbouring pixels, to the right and below.
    """
    image = image.double()
    neighbours = [(image[..., 1:] - image[..., :-1]).square(), (image[..., 1:, :] - image[..., :-1, :]).square()]
    steps = torch.cat([each.flatten(1) for each in neighbours], 1)
    return torch.stack(
        [
            image.flatten(1).mean(1),
            image.flatten(1).square().mean(1),
            image.var(1, correction=0).flatten(1).mean(1) if image.shape[1] == 3 else image.new_zeros(len(image)),
            steps.sum(1) / max(steps.shape[1], 1),
        ],
        1,
    )


@dataclass(frozen=True)
class ImageSet:
    """What was measured of N images, of which image i has condition i modulo `num_conditions`.

    Attributes:
        features: (N, d).
        statistics: see `statistics`, float64 (N, 4).
        clip: cosines of images and prompts (N,), or None.
    """

    features: Tensor
    statistics: Tensor
    num_conditions: int
    clip: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.statistics[:, 0].mean())

    @property
    def contrast(self) -> float:
        """Standard deviation of all values of all images."""
        return math.sqrt(max(float(self.statistics[:, 1].mean()) - self.mean**2, 0.0))

    @property
    def saturation(self) -> float:
        """Root mean square difference of the channels of a pixel from their mean; 0 for grey images."""
        return math.sqrt(float(self.statistics[:, 2].mean()))

    @property
    def sharpness(self) -> float:
        """Root mean square difference of neighbouring pixels, over the contrast: blur lowers it, contrast does not."""
        return math.sqrt(float(self.statistics[:, 3].mean())) / self.contrast if self.contrast else 0.0

    @cached_property
    def diversity(self) -> float:
        """Mean distance in features between two images of one condition."""
        groups = self.features.double().unflatten(0, (-1, self.num_conditions)).transpose(0, 1)
        seeds = groups.shape[1]
        total = sum(float(distances.sum()) for group in groups for distances in _distances(group))
        return total / (len(groups) * seeds * (seeds - 1))

    @cached_property
    def halves_distance(self) -> float:
        """Frechet distance between two halves of the images, which have other noise and the same conditions."""
        seeds = len(self.features) // self.num_conditions
        first = seeds // 2 * self.num_conditions
        return sample_distance(self.features[:first], self.features[first : 2 * first])


def compare(student: ImageSet, teacher: ImageSet, *, same_noise: bool) -> dict[str, float]:
    """Columns of the training log; those that are undefined for these images, such as colour of grey ones, are absent.

    `ratio_to_teacher/*` are 1, and `difference_to_teacher/*` 0, for images like the teacher's.
    `distance_to_teacher/features` is the Frechet distance of student and teacher over that of two halves of the
    teacher's images. `distance_to_teacher/same_noise` is the mean distance of two images from the same noise over the
    mean distance of two images of one condition of the teacher: 0 for the same images, 1 for unrelated ones. A student
    whose images are not finite has NaN in every column.

    Args:
        same_noise: whether image i of both came from the same noise.
    """
    columns = {
        MEAN: _ratio(student.mean - teacher.mean, teacher.contrast),
        CONTRAST: _ratio(student.contrast, teacher.contrast),
        SATURATION: _ratio(student.saturation, teacher.saturation),
        SHARPNESS: _ratio(student.sharpness, teacher.sharpness),
        DIVERSITY: _ratio(student.diversity, teacher.diversity),
    }
    finite = bool(student.features.isfinite().all() and student.statistics.isfinite().all())
    floor = teacher.halves_distance
    columns[FEATURES] = _ratio(sample_distance(student.features, teacher.features), floor) if finite else math.nan
    if same_noise:
        distance = float((student.features.double() - teacher.features.double()).norm(dim=1).mean())
        columns[SAME_NOISE] = _ratio(distance, teacher.diversity)
    if student.clip is not None and teacher.clip is not None:
        columns[CLIP] = float(student.clip.double().mean() - teacher.clip.double().mean())
    defined = {
        MEAN: teacher.contrast,
        CONTRAST: teacher.contrast,
        SATURATION: teacher.saturation,
        SHARPNESS: teacher.sharpness,
        DIVERSITY: teacher.diversity,
        FEATURES: floor,
        SAME_NOISE: teacher.diversity,
    }
    return {name: value if finite else math.nan for name, value in columns.items() if defined.get(name, 1.0) > 1e-9}


def _distances(features: Tensor) -> Iterator[Tensor]:
    """Distances of some of the features (N, d) to all of them, (ROWS, N) or fewer, until all have been compared."""
    for some in features.split(ROWS):
        yield torch.cdist(some, features, compute_mode="donot_use_mm_for_euclid_dist")


def _ratio(value: float, other: float) -> float:
    return value / other if other else math.nan
