"""Precision, recall, density and coverage, by hand on a line and by definition on random features."""

import pytest
import torch

from dmd.metrics import neighbours
from dmd.metrics.prdc import prdc


def test_prdc_equals_a_count_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii to the nearest: 1, 1, 2, 7
    generated = torch.tensor([[0.5], [2.0], [20.0]])  # radii to the nearest: 1.5, 1.5, 18
    found = prdc(generated, real, neighbours=1)
    # 0.5 lies in the balls of 0 and 1; 2.0 only in that of 3 (1 and 10 are exactly at their radius or
    # beyond); 20 in none.
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["density"] == pytest.approx(3 / 3)
    # the ball of 0.5 holds 0 and 1, that of 2 holds 1 and 3, that of 20 holds 3 and 10.
    assert found["recall"] == 1
    assert found["coverage"] == pytest.approx(3 / 4)


def test_prdc_equals_the_definition_across_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(neighbours, "COLUMNS", 5)
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(60, 3, generator=generator).double()
    generated = 1.3 * torch.randn(45, 3, generator=generator).double() + 0.5

    def between(rows, columns):
        return (rows[:, None] - columns[None]).square().sum(2).sqrt()

    real_radii = between(real, real).sort(1).values[:, 3]
    generated_radii = between(generated, generated).sort(1).values[:, 3]
    cross = between(generated, real)
    expected = {
        "precision": float((cross < real_radii).any(1).double().mean()),
        "recall": float((cross < generated_radii[:, None]).any(0).double().mean()),
        "density": float((cross < real_radii).double().sum(1).mean() / 3),
        "coverage": float((cross.amin(0) < real_radii).double().mean()),
    }
    assert prdc(generated, real, neighbours=3) == pytest.approx(expected)
    assert 0 < expected["coverage"] < 1


def test_prdc_of_one_repeated_image_is_precise_but_covers_nothing():
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(200, 2, generator=generator)
    found = prdc(real.mean(0).expand(100, 2), real, neighbours=3)
    assert found["precision"] == 1
    assert found["recall"] == 0
    assert found["coverage"] < 0.15


def test_prdc_refuses_more_neighbours_than_features():
    with pytest.raises(ValueError, match="neighbours is 3, but there are 3 features"):
        prdc(torch.zeros(3, 2), torch.zeros(9, 2), neighbours=3)
