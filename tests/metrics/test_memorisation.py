"""The three-sample test tells copying, fair sampling and bad samples apart."""

import pytest
import torch

from dmd.metrics.memorisation import QUANTILE, mann_whitney, memorisation


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)
    return lambda num: torch.randn(num, 4, generator=generator)


def test_fair_samples_are_as_near_as_held_out_images(world):
    found = memorisation(world(600), world(500), world(400))
    assert abs(found["z"]) < 3
    assert found["nearer"] == pytest.approx(QUANTILE, abs=0.04)


def test_copies_are_nearer_than_held_out_images(world):
    training = world(500)
    found = memorisation(training[:300] + 0.01 * world(300), training, world(400))
    assert found["z"] < -15
    assert found["auc"] < 0.05
    assert found["nearer"] > 0.9


def test_samples_off_the_data_are_farther(world):
    found = memorisation(world(300) + 5, world(500), world(400))
    assert found["z"] > 15
    assert found["nearer"] == 0


def test_mann_whitney_equals_the_count_of_pairs():
    values, others = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 0.0, 4.0])
    pairs = [(a > b) + (a == b) / 2 for a in values.tolist() for b in others.tolist()]
    auc, z = mann_whitney(values, others)
    assert auc == pytest.approx(sum(pairs) / 12)
    assert z == pytest.approx((12 * auc - 6) / (12 * 8 / 12) ** 0.5)
