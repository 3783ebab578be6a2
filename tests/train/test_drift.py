"""Signs of drift: none in healthy runs of bench/results/drift.json, one before the end of each that collapsed."""

import json
from pathlib import Path

import pytest

from bench.drift import CASES, collapsed, judged
from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES, SATURATION, SHARPNESS
from dmd.train import drift

RUNS = json.loads((Path(__file__).resolve().parents[2] / "bench" / "results" / "drift.json").read_text())
PHASES = [range(100)]


def row(update: int, *, distance: float = 0.3, diversity: float = 0.95, phase: int = 0, **more: float) -> dict:
    columns = {"update": update, "phase": phase, FEATURES: distance, DIVERSITY: diversity, CONTRAST: 1.0}
    return (
        columns | {SHARPNESS: 1.0, SATURATION: 1.0} | {f"ratio_to_teacher/{key}": value for key, value in more.items()}
    )


def names(*rows: dict, phases: list[range] = PHASES) -> list[str]:
    return [sign.name for sign in drift.signs(rows, phases)]


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_collapse_are_named_before_their_end_and_healthy_ones_never(name):
    signs = judged(RUNS[name])
    if RUNS[name]["healthy"]:
        assert not signs
    assert signs or not collapsed(name, RUNS)


def test_there_are_three_seeds_of_each_healthy_run_and_three_that_collapsed_of_each_kind():
    digits = {f"{name}, seed {seed}" for name, case in CASES.items() if case.of_digits for seed in case.seeds}
    others = {f"{name}, seed {seed}" for name, case in CASES.items() if not case.of_digits for seed in case.seeds}
    assert digits <= RUNS.keys() <= digits | others
    for kind in ("student rate x 20", "no fake updates", "guidance 15", "fake rate / 50"):
        assert sum(collapsed(name, RUNS) for name in RUNS if kind in name) >= 3
    assert sum(case.healthy for case in CASES.values() if case.of_digits) == 5
    assert not any(collapsed(name, RUNS) for name in RUNS if RUNS[name]["healthy"])


def test_a_student_that_begins_blurred_is_not_judged_before_the_second_half():
    blurred = {"distance": 1.1, "diversity": 0.3, "contrast": 0.6, "sharpness": 0.5}
    assert names(row(9, **blurred)) == names(row(9, **blurred), row(40, **blurred)) == []
    assert names(row(9, **blurred), row(60, **blurred)) == ["distance stays", "alike", "contrast", "blurred"]


def test_a_fall_is_named_at_any_time():
    assert names(row(9), row(19, distance=0.6)) == ["distance grows"]
    assert names(row(9), row(19, diversity=0.5)) == ["alike"]
    assert names(row(9), row(19, contrast=2.0, saturation=2.0)) == ["contrast", "saturation"]
    assert names(row(9, distance=0.06), row(19, distance=0.13)) == ["distance grows"]
    assert names(row(9, distance=0.1), row(19, distance=0.19)) == []  # both are near the teacher
    assert names(row(9, distance=0.02), row(19, distance=0.09)) == []


def test_rows_of_other_phases_do_not_count():
    phases = [range(50), range(50, 100)]
    assert names(row(40), row(60, distance=1.0, diversity=0.4), phases=phases) == []
    assert names(row(40), row(80, distance=1.0, diversity=0.4), phases=phases) == ["distance stays", "alike"]


def test_sentences_have_the_numbers_and_what_helps():
    rows = [row(9), row(19, diversity=0.4)]
    (sign,) = drift.signs(rows, PHASES)
    assert "their diversity fell from 0.95 to 0.40; lower optimisers.student.learning_rate" in str(sign)
    line = drift.summary(rows, [sign])
    assert line.startswith("after 20 updates distance to the teacher's images 0.30, lowest 0.30 after 10; over")
    assert "diversity 0.40" in line and line.endswith(str(sign)) and "\n" not in line
    assert drift.summary(rows[:1], []).endswith("no sign of drift")


def test_rows_without_measurements_are_left_out():
    assert drift.measured([{"update": 0, "phase": 0}, row(1), {"update": 2, CONTRAST: float("nan")}]) == [row(1)]
    assert drift.signs([], PHASES) == []
