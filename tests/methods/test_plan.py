"""Phases of a method: what is planned, what is skipped and said, and what each has to learn."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from dmd.config.methods import Method
from dmd.config.methods.denoising import Denoising
from dmd.config.methods.dmd import Dmd
from dmd.methods import load
from dmd.methods.base import Clock, Step
from dmd.train.trainer import Plan, plan
from tests.trainings import changed


def planned(section: dict, **keys) -> tuple[Dmd, Plan, list[str]]:
    method = Dmd.model_validate(changed(section, **keys)["method"])
    return method, *plan(method)


def steps(method: Dmd, clock: Clock) -> tuple[Step, ...]:
    return load("dmd").steps(method, clock)


def pairs_before(method: Dmd, plan: Plan) -> list[int]:
    """Pairs that all updates before each phase read."""
    return [
        sum(
            part.size
            for update in range(phase.first)
            for step in steps(method, plan.clock(update))
            for part in step.parts
            if part.stream == "pairs"
        )
        for phase in plan.phases
    ]


def test_phases_follow_each_other_and_read_pairs_on(distill_section):
    method, found, notes = planned(distill_section)
    assert [phase.index for phase in found.phases] == [0, 1, 2]
    assert [(phase.first, phase.config.updates) for phase in found.phases] == [(0, 4), (4, 3), (7, 9)]
    assert found.total == 16 and [phase.stop for phase in found.phases] == [4, 7, 16]
    assert [method.losses(phase.config) for phase in found.phases] == [
        {"regression"},
        {"fake"},
        {"matching", "regression", "fake"},
    ]
    assert pairs_before(method, found) == [0, 20, 20]  # 4 updates of 5 pairs; the fake phase reads none
    assert notes == []
    trained = [[step.trains for step in steps(method, found.clock(phase.first))] for phase in found.phases]
    assert trained == [[("student",)], [("fake",)], [("student",), ("fake",), ("fake",)]]


def test_clock_knows_update_total_and_place_in_the_phase(distill_section):
    _, found, _ = planned(distill_section)
    clocks = [found.clock(update) for update in range(16)]
    assert [(clock.update, clock.total, clock.phase.index) for clock in clocks] == [
        (update, 16, 0 if update < 4 else 1 if update < 7 else 2) for update in range(16)
    ]
    assert [clock.in_phase for clock in clocks] == [*range(4), *range(3), *range(9)]
    for update in (-1, 16):
        with pytest.raises(ValueError, match=f"update {update} belongs to no phase"):
            found.clock(update)


@pytest.mark.parametrize(
    ("keys", "left", "skipped"),
    [
        ({"regression_weight": 0.0}, [(1, 0, 3), (2, 3, 9)], 0),
        ({"matching_weight": 0.0}, [(0, 0, 4), (2, 4, 9)], 1),
        ({"fake_score": False}, [(0, 0, 4), (2, 4, 9)], 1),
    ],
)
def test_a_phase_with_nothing_to_learn_is_skipped_and_said(distill_section, keys, left, skipped):
    _, found, notes = planned(distill_section, **keys)
    assert [(phase.index, phase.first, phase.config.updates) for phase in found.phases] == left
    assert notes[0] == f"phase {skipped} skipped: it has no loss"


@pytest.mark.parametrize("keys", [{"matching_weight": 0.0}, {"fake_score": False}])
def test_fake_updates_that_are_not_made_are_said(distill_section, keys):
    _, _, notes = planned(distill_section, **keys)
    assert notes[1:] == ["phase 2: fake_updates 2 has no effect: the fake score is not used"]


def test_weight_zero_is_off_in_every_phase(distill_section):
    distill_section["method"]["phases"][2]["regression_scale"] = 100.0
    method, found, _ = planned(distill_section, regression_weight=0.0)
    assert not any("regression" in method.losses(phase.config) for phase in found.phases)
    assert pairs_before(method, found) == [0, 0] and method.reads() == frozenset()
    assert planned(distill_section)[0].reads() == {"pairs"}


def test_a_method_that_has_nothing_left_to_learn_is_refused(distill_section):
    with pytest.raises(ValueError, match="no phase has a loss: the weights are 0"):
        planned(distill_section, regression_weight=0.0, matching_weight=0.0)


def test_shared_noise_without_a_fake_update_is_refused(distill_section):
    phases = [{"updates": 3, "fake_updates": 0}]
    with pytest.raises(ValueError, match="shared_noise needs fake_updates of at least 1"):
        planned(distill_section, shared_noise=True, phases=phases)


def num_parts(method: Dmd, plan: Plan) -> int:
    """Batches of all steps of all updates."""
    clocks = map(plan.clock, range(plan.total))
    return sum(len(step.parts) for clock in clocks for step in steps(method, clock))


def test_batches_are_those_of_the_losses_that_are_left(distill_section):
    """Regression: 1; fake alone: 1; both: 2, then two fake updates."""
    expected = {
        "plain": 4 * 1 + 3 * 1 + 9 * (2 + 2),
        "shared_noise": 4 * 1 + 3 * 1 + 9 * (2 + 1),  # the first fake update is the matching pass
        "matching_weight": 4 * 1 + 9 * 1,
        "fake_score": 4 * 1 + 9 * 2,
    }
    keys = {"plain": {}, "shared_noise": {"shared_noise": True}}
    keys |= {"matching_weight": {"matching_weight": 0.0}, "fake_score": {"fake_score": False}}
    assert {name: num_parts(*planned(distill_section, **each)[:2]) for name, each in keys.items()} == expected


ROUNDS = [{"updates": 1, "steps": 2}, {"updates": 1, "steps": 1}]
OWN = [{"updates": 1, "matching_batch_size": 7}, {"updates": 1, "train": "fake", "matching_batch_size": 8}]
OWN += [{"updates": 1, "fake_updates": 3}, {"updates": 1, "matching_scale": 0.0, "regression_batch_size": 9}]
OWN += [{"updates": 1, "regression_scale": 0.0}]
SHARES: list[dict[str, Any]] = [
    *({"name": "dmd"} | more for more in ({}, {"match_pairs": True}, {"shared_noise": True}, {"fake_score": False})),
    {"name": "dmd", "matching_weight": 0.0},
    {"name": "dmd", "regression_weight": 0.0},
    {"name": "consistency", "batch_size": 5, "target_decay": 0.9},
    {"name": "ect", "batch_size": 5},
    {"name": "moment-matching", "batch_size": 5, "phases": [{"updates": 1, "fake_updates": 2}]},
    {"name": "mean-flow", "batch_size": 5},
    {"name": "scm", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "lcm", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "meng", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "progressive", "batch_size": 5, "phases": ROUNDS},
    {"name": "dmd2", "batch_size": 5, "calls": 2, "phases": [{"updates": 1}]},
    {"name": "tdm", "batch_size": 5, "phases": [{"updates": 1, "fake_updates": 2}]},
    {"name": "diff-instruct", "batch_size": 5, "phases": [{"updates": 1, "fake_updates": 2}]},
    {"name": "gan", "batch_size": 5, "phases": [{"updates": 1, "discriminator_updates": 2}]},
    {"name": "ufogen", "batch_size": 5, "reconstruction_weight": 1.0, "phases": [{"updates": 1}]},
    {"name": "f-distill", "batch_size": 5, "phases": [{"updates": 1, "fake_updates": 2}]},
    {"name": "sid", "batch_size": 5, "adversarial": {}, "phases": [{"updates": 1, "fake_updates": 2}]},
    {"name": "sid", "batch_size": 5, "phases": [{"updates": 1, "fake_updates": 2}]},
    {
        "name": "boot",
        "levels": 6,
        "boundary_weight": 1.0,
        "batch_size": 5,
        "boundary_batch_size": 4,
        "phases": [{"updates": 1}],
    },
    {"name": "imm", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "ctm", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "dfno", "batch_size": 5},
    {"name": "tract", "batch_size": 5, "phases": [{"updates": 1, "groups": 4}, {"updates": 1, "groups": 1}]},
    {"name": "rectified-flow", "objective": "reflow", "batch_size": 5, "phases": [{"updates": 1}]},
    {"name": "denoising", "batch_size": 5, "phases": [{"updates": 1}]},
]


@pytest.mark.parametrize("section", SHARES, ids=str)
def test_batches_that_the_configuration_holds_against_the_processes_are_those_of_the_parts(section):
    """So the trainer need not: each process has rows of every part, and equal ones where parameters are spread."""
    if section["name"] == "dmd":
        section = section | {"matching_batch_size": 3, "regression_batch_size": 4, "phases": OWN}
    method: Any = TypeAdapter(Denoising if section["name"] == "denoising" else Method).validate_python(section)
    found, _ = plan(method)
    each = [step for phase in found.phases for step in load(method.name).steps(method, found.clock(phase.first))]
    assert {part.size for step in each for part in step.parts} == set(method.batch_sizes().values())
    assert all(len({part.name for part in step.parts}) == len(step.parts) for step in each)
