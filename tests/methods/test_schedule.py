"""Learning rate over updates; randomness of one update; phases."""

import math

import pytest
import torch

from dmd.methods.phases import num_passes, plan
from dmd.methods.schedule import learning_rate_factor, update_generator


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


def test_phases_follow_each_other_and_read_pairs_on(distill_numbers):
    phases, notes = plan(distill_numbers)
    assert [phase.index for phase in phases] == [0, 1, 2]
    assert [(phase.first, phase.updates) for phase in phases] == [(0, 4), (4, 3), (7, 9)]
    assert [(phase.trains_generator, phase.matching, phase.regression) for phase in phases] == [
        (True, False, True),
        (False, False, False),
        (True, True, True),
    ]
    assert [phase.first_pair for phase in phases] == [0, 20, 20]  # 4 updates of 5 pairs; the fake phase reads none
    assert [phase.fake_updates for phase in phases] == [0, 1, 2]
    assert notes == []


@pytest.mark.parametrize(
    ("changed", "left", "skipped"),
    [
        ({"regression_weight": 0.0}, [(1, 0, 3), (2, 3, 9)], 0),
        ({"matching_weight": 0.0}, [(0, 0, 4), (2, 4, 9)], 1),
        ({"fake_score": False}, [(0, 0, 4), (2, 4, 9)], 1),
    ],
)
def test_a_phase_with_nothing_to_learn_is_skipped_and_said(distill_numbers, changed, left, skipped):
    phases, notes = plan(distill_numbers | changed)
    assert [(phase.index, phase.first, phase.updates) for phase in phases] == left
    assert notes[0] == f"phase {skipped} skipped: no loss is left in it"


@pytest.mark.parametrize("changed", [{"matching_weight": 0.0}, {"fake_score": False}])
def test_fake_updates_that_are_not_made_are_said(distill_numbers, changed):
    _, notes = plan(distill_numbers | changed)
    assert notes[1:] == ["phase 2: the fake score is not used, fake_updates 2 not made"]


def test_weight_zero_is_off_in_every_phase(distill_numbers):
    distill_numbers["phases"][2]["regression_scale"] = 100.0
    phases, _ = plan(distill_numbers | {"regression_weight": 0.0})
    assert not any(phase.regression for phase in phases)
    assert [phase.first_pair for phase in phases] == [0, 0]


def test_passes_are_those_of_the_losses_that_are_left(distill_numbers):
    # regression: 3; fake alone: 1 + 3; both: 3 + 3 and two scores, then two fake updates and one generator pass
    assert num_passes(distill_numbers) == 4 * 3 + 3 * (1 + 3) + 9 * (3 + 3 + 2 + 2 * 3 + 1)
    assert num_passes(distill_numbers | {"shared_noise": True}) == num_passes(distill_numbers) - 9
    assert num_passes(distill_numbers | {"matching_weight": 0.0}) == 4 * 3 + 9 * 3
    assert num_passes(distill_numbers | {"fake_score": False}) == 4 * 3 + 9 * (3 + 3 + 1)
