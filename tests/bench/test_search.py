"""The search for learning rates: where it goes on, and what it compares."""

import pytest
import torch

from bench.search import STEP, beyond, distance
from dmd.metrics.moments import Moments


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({0.3: 2.0, 1.0: 1.0, 3.0: 2.0}, None),
        ({0.3: 1.0, 1.0: 2.0, 3.0: 3.0}, 0.3 / STEP),
        ({0.3: 3.0, 1.0: 2.0, 3.0: 1.0}, 3.0 * STEP),
        ({0.3: 2.0, 1.0: 1.0, 3.0: None}, None),
        ({0.3: None, 1.0: None, 3.0: None}, 0.3 / STEP),
        ({0.1: 1.0, 0.3: None, 1.0: None}, 0.1 / STEP),
    ],
)
def test_the_search_goes_on_beyond_a_best_scale_at_an_end(found, following):
    assert beyond(found) == following


def test_distance_of_shifted_images_is_the_squared_shift():
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = Moments.of(values), Moments.of(values + torch.tensor([3.0, 0.0, 0.0]))
    assert distance(one, other) == pytest.approx(9.0, abs=1e-3) and distance(one, one) == pytest.approx(0.0, abs=1e-4)
