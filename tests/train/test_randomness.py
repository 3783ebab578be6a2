"""Learning rate over updates; randomness of one update, and of one pass."""

import math

import pytest
import torch

from dmd.train.optimiser import learning_rate_factor
from dmd.train.randomness import seed_pass, update_generator


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", lambda done: 1.0), ("linear", lambda done: 1 - done)]
    + [("cosine", lambda done: math.cos(math.pi * done / 2) ** 2)],
)
def test_learning_rate_warms_up_and_then_decays(decay, expected):
    factors = [learning_rate_factor(update, total=20, warmup=5, decay=decay) for update in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == pytest.approx([expected(place / 15) for place in range(15)])
    assert all(factor > 0 for factor in factors)


def test_learning_rate_without_warmup_starts_whole_and_a_long_warmup_never_ends():
    assert learning_rate_factor(0, total=3, warmup=0, decay="linear") == 1
    assert learning_rate_factor(2, total=3, warmup=10, decay="cosine") == pytest.approx(0.3)


def test_learning_rate_refuses_an_unknown_decay():
    with pytest.raises(ValueError, match="'step'.*cosine"):
        learning_rate_factor(0, total=1, warmup=0, decay="step")


def test_update_randomness_is_a_function_of_seed_and_update():
    def draw(seed: int, update: int) -> float:
        return float(torch.randn((), generator=update_generator("distill", seed, update)))

    forward = [draw(3, update) for update in range(50)]
    torch.randn(7)
    assert [draw(3, update) for update in reversed(range(50))] == forward[::-1]
    assert len({*forward, *(draw(4, update) for update in range(50))}) == 100


def test_passes_draw_what_their_place_in_an_update_says():
    def draw(*place: int) -> float:
        seed_pass(*place)
        return float(torch.rand(()))

    places = [(seed, update, step, part) for seed in (0, 1) for update in (0, 1) for step in (0, 1) for part in (0, 1)]
    forward = [draw(*place) for place in places]
    assert [draw(*place) for place in reversed(places)] == forward[::-1] and len(set(forward)) == len(places)
    before = float(torch.rand((), generator=update_generator("pass", 0, 0)))
    draw(5, 5)
    assert float(torch.rand((), generator=update_generator("pass", 0, 0))) == before
