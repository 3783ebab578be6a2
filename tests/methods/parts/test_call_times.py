"""The calls of a section `times`, of every kind."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dmd.config.methods.dmd2 import Dmd2
from dmd.methods.base import Facts
from dmd.methods.parts.call_times import Times, calls_at
from dmd.sampling.noise import karras_sigmas
from tests.sampling.test_call_schedulers import FLOW, FOUR, facts, sigmas


def at(section: dict[str, Any], num: int, **known: Any) -> Any:
    times = TypeAdapter(Times).validate_python(section)
    return calls_at(times, num, Facts((4, 8, 8), 0, 1.0, **known))


def test_levels_come_from_the_curve_the_list_or_the_scheduler():
    given = facts()
    curve = at({"kind": "karras", "sigma_min": 0.5, "sigma_max": None}, 4, sigma_max=14.6)
    assert curve.sigmas == pytest.approx(karras_sigmas(4, sigma_min=0.5, sigma_max=14.6, rho=7.0).tolist())
    assert at({"kind": "listed", "sigmas": [9.0, 1.0]}, 2).sigmas == (9.0, 1.0)
    assert at({"kind": "lcm"}, 4, **given).sigmas == sigmas(given, FOUR)
    later = at({"kind": "lcm", "original_inference_steps": 50}, 4, **given)
    assert later.sigmas == sigmas(given, [999, 759, 499, 259]) and later.between == "noise"
    even = at({"kind": "flow-match-euler", "shift": 1.0, "shift_terminal": 0.5}, 2, **FLOW)
    assert even.sigmas[1] == pytest.approx(1.0) and even.scheduler["config"]["stochastic_sampling"]


@pytest.mark.parametrize(
    ("section", "known", "words"),
    [
        ({"kind": "karras", "sigma_max": None}, {}, "times.sigma_max: null is the highest noise level"),
        ({"kind": "lcm"}, {}, "times: lcm cannot make 4 calls with this teacher: its preconditioning is 'edm'"),
        ({"kind": "lcm"}, FLOW, "times: lcm cannot make 4 calls .*LCMScheduler needs a teacher with timesteps"),
        ({"kind": "lcm", "original_inference_steps": 2000}, facts(), "cannot make 4 steps.*2000 cannot be larger"),
        ({"kind": "flow-match-euler"}, facts(), "times: flow-match-euler cannot make 4 calls .*rectified flow"),
    ],
)
def test_times_that_the_teacher_cannot_have_are_refused(section, known, words):
    with pytest.raises(ValueError, match=words):
        at(section, 4, **known)


@pytest.mark.parametrize(
    ("calls", "times", "words"),
    [
        (5, {"kind": "lcm", "original_inference_steps": 4}, "original_inference_steps: 4 for calls 5"),
        (1, {"kind": "flow-match-euler", "shift_terminal": 0.5}, "shift_terminal: .* calls is 1"),
        (2, {"kind": "lcm", "shift": 3.0}, "shift"),
    ],
)
def test_keys_that_contradict_are_refused_without_a_teacher(calls, times, words):
    with pytest.raises(ValidationError, match=words):
        Dmd2.model_validate({"name": "dmd2", "calls": calls, "times": times})
