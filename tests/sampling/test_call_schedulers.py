"""Schedulers of diffusers that make a student's calls: their timesteps, and calls that none of them makes."""

from typing import Any

import pytest
import torch

from dmd import torchvision_operators
from dmd.models.preconditioning import NO_SIGNAL, preconditioning
from dmd.models.student_calls import Calls
from dmd.sampling import call_schedulers
from tests.stable_diffusion_files import SCHEDULER

FLOW = {"preconditioning": {"kind": "flow"}, "scheduler": {"_class_name": call_schedulers.FLOW, "shift": 3.0}}
FOUR, EIGHT = [999, 749, 499, 249], [999, 874, 749, 624, 499, 374, 249, 124]


def facts(prediction: str = "epsilon", *, zero_snr: bool = False) -> dict[str, Any]:
    """Of a teacher with the noise levels of Stable Diffusion, perhaps without signal at the last timestep."""
    torchvision_operators.ensure()
    from diffusers import DDIMScheduler

    config = {"_class_name": "DDIMScheduler", **SCHEDULER, "prediction_type": prediction}
    config |= {"rescale_betas_zero_snr": zero_snr}
    squares = DDIMScheduler.from_config(config).alphas_cumprod.double().clamp(min=NO_SIGNAL**-2).tolist()
    names = {"v_prediction": "v"}
    levels = {"kind": "discrete", "alphas_cumprod": squares, "prediction": names.get(prediction, prediction)}
    return {"preconditioning": levels, "scheduler": config}


def sigmas(given: dict[str, Any], timesteps: list[int]) -> tuple[float, ...]:
    table = preconditioning(given["preconditioning"], sigma_data=1.0).table
    assert table is not None
    return tuple(table[1][timesteps].tolist())


TEACHERS = [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False)]


@pytest.mark.parametrize(("prediction", "zero_snr"), TEACHERS)
@pytest.mark.parametrize("timesteps", [[999], [999, 499], FOUR, EIGHT])
def test_calls_of_a_scheduler_are_at_the_teachers_levels(timesteps, prediction, zero_snr):
    given, num = facts(prediction, zero_snr=zero_snr), len(timesteps)
    for scheduler, between in (
        (call_schedulers.lcm(given), "noise"),
        (call_schedulers.ddim(given, "trailing"), "ode"),
        (call_schedulers.ddpm(given, "trailing"), "ancestral"),
    ):
        calls = call_schedulers.read_calls(scheduler, given, num)
        assert calls.sigmas == sigmas(given, timesteps) and calls.between == between
        assert calls.scheduler is not None and calls.scheduler["timesteps"] == timesteps
        assert calls.scheduler["class"] == type(scheduler).__name__
        assert Calls.of(calls.facts()) == calls
    assert (calls.sigmas[0] == NO_SIGNAL) == zero_snr


def test_lcm_times_are_those_of_its_original_steps():
    given = facts()
    calls = call_schedulers.read_calls(call_schedulers.lcm(given, 50), given, 4)
    assert calls.scheduler is not None and calls.scheduler["timesteps"] == [999, 759, 499, 259]
    with pytest.raises(ValueError, match="LCMScheduler cannot make 5 steps: ValueError .*original_steps"):
        call_schedulers.read_calls(call_schedulers.lcm(given, 4), given, 5)


@pytest.mark.parametrize("renoise", [True, False])
@pytest.mark.parametrize(
    ("num", "shift", "terminal", "expected"),
    [
        (1, None, None, [1.0]),
        (2, 1.0, 0.5, [1.0, 0.5]),
        (4, 1.0, 0.25, [1.0, 0.75, 0.5, 0.25]),
        (4, 1.0, None, [1.0, 0.667, 0.334, 0.001]),
        (4, None, None, [1.0, 0.857692, 0.602151, 0.00892857]),  # shift 3, also in the lowest time
    ],
)
def test_flow_times_are_those_of_the_scheduler(num, shift, terminal, expected, renoise):
    scheduler = call_schedulers.flow(FLOW, renoise=renoise, shift=shift, terminal=terminal)
    calls = call_schedulers.read_calls(scheduler, FLOW, num)
    times = [sigma / (1 + sigma) for sigma in calls.sigmas]
    assert times == pytest.approx(expected, abs=1e-6) and calls.between == ("noise" if renoise else "ode")
    assert calls.sigmas[0] == NO_SIGNAL
    again = call_schedulers.find(calls, FLOW)
    assert again.config.shift == (shift or 3.0) and again.config.shift_terminal == terminal


@pytest.mark.parametrize("shift", [0.01, 0.2, 1.83])
def test_first_time_of_a_flow_that_is_rounded_above_1_is_noise_alone(shift):
    scheduler = call_schedulers.flow(FLOW, renoise=True, shift=shift)
    calls = call_schedulers.read_calls(scheduler, FLOW, 2)
    assert scheduler.timesteps[0] > 1000 and calls.sigmas[0] == NO_SIGNAL and calls.sigmas[1] < 1


def test_levels_to_six_digits_are_found_again():
    given = facts()
    rounded = tuple(float(f"{sigma:.6g}") for sigma in sigmas(given, FOUR))
    found = call_schedulers.find(Calls(rounded), given)
    assert type(found).__name__ == "LCMScheduler" and found.timesteps.tolist() == FOUR
    assert type(call_schedulers.find(Calls(rounded, "ode"), given)).__name__ == "DDIMScheduler"
    assert type(call_schedulers.find(Calls(rounded, "ancestral"), given)).__name__ == "DDPMScheduler"
    even = call_schedulers.find(Calls((NO_SIGNAL, 1.0)), FLOW)
    assert even.timesteps.tolist() == [1000.0, 500.0] and even.config.stochastic_sampling


def test_scheduler_that_is_found_refuses_most_wrong_numbers_of_steps():
    given = facts()
    for timesteps in ([999], [999, 499], FOUR, EIGHT):
        accepted = call_schedulers.accepted_steps(call_schedulers.find(Calls(sigmas(given, timesteps)), given))
        assert [*accepted] == [*range(1, len(timesteps) + 1)] and accepted[len(timesteps)] == timesteps
    ode = call_schedulers.find(Calls(sigmas(given, FOUR), "ode"), given)
    assert [*call_schedulers.accepted_steps(ode)] == [*range(1, 1001)]


def test_ancestral_steps_of_a_flow_are_refused():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler takes no ancestral steps"):
        call_schedulers.find(Calls((NO_SIGNAL, 1.0), "ancestral"), FLOW)
    assert type(call_schedulers.find(Calls((NO_SIGNAL,), "ancestral"), FLOW)).__name__ == call_schedulers.FLOW


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (Calls((80.0,)), "call 1 of 1 is at sigma 80, between two timesteps: the nearest, 999, has 14.6146"),
        (Calls((14.6146, 3.0)), "call 2 of 2 is at sigma 3, between two timesteps: the nearest, 673, has 2.99819"),
        (Calls((14.6146, 1.61828)), "call 2 of 2 is at timestep 500 .sigma 1.61828., but the nearest LCM.* 999, 499$"),
        (
            Calls((14.6146, 4.08173), "ode"),
            "call 2 of 2 is at timestep 749 .*DDIMScheduler calls at timesteps 999, 499",
        ),
        (Calls((1.16058,)), "call 1 of 1 is at timestep 399 .*nearest LCMScheduler calls at timesteps 999"),
        (Calls((14.6146,), map="consistency", sigma_min=0.03), "its map is consistency, and"),
    ],
)
def test_calls_that_no_scheduler_makes_are_refused_with_the_call(calls, words):
    with pytest.raises(ValueError, match=words):
        call_schedulers.find(calls, facts())


def test_scheduler_that_does_not_make_the_calls_that_name_it_is_refused():
    given = facts()
    calls = call_schedulers.read_calls(call_schedulers.lcm(given), given, 4)
    for fields, words in (
        ({"original_inference_steps": 50}, "call 2 of 4 is at timestep 749 .* 999, 759, 499, 259"),
        ({"timestep_scaling": 1e-3}, "has these timesteps, but takes other steps between them"),
        ({"beta_schedule": "none"}, "scheduler: .*none is not implemented"),
    ):
        other = {**calls.scheduler, "config": calls.scheduler["config"] | fields}
        with pytest.raises(ValueError, match=words):
            call_schedulers.find(Calls.of(calls.facts() | {"scheduler": other}), given)


def test_steps_of_ddim_that_miss_the_next_timestep_are_refused():
    """In 3 steps DDIM goes from 666 to the level of 333, and calls the network with 332."""
    given = facts()
    with pytest.raises(ValueError, match="DDIMScheduler has these timesteps, but takes other steps between them"):
        call_schedulers.find(Calls(sigmas(given, [999, 666, 332]), "ode"), given)


def test_teachers_without_timesteps_or_flow_are_refused():
    given = facts()
    with pytest.raises(ValueError, match="its preconditioning is 'edm'"):
        call_schedulers.find(Calls((80.0,)), {})
    with pytest.raises(ValueError, match="LCMScheduler needs a teacher with timesteps, that comes with a scheduler"):
        call_schedulers.lcm(given | {"scheduler": None})
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler needs a teacher of rectified flow"):
        call_schedulers.flow(given, renoise=True)
    other = given["scheduler"] | {"beta_end": 0.02}
    with pytest.raises(ValueError, match="computes other noise levels .* than the teacher's file has"):
        call_schedulers.lcm(given | {"scheduler": other})
    with pytest.raises(ValueError, match="use_dynamic_shifting True is not supported"):
        call_schedulers.flow(FLOW | {"scheduler": {"use_dynamic_shifting": True}}, renoise=True)


def test_fields_that_a_configuration_leaves_out_are_those_of_its_class():
    torchvision_operators.ensure()
    from diffusers import DDPMScheduler

    squares = DDPMScheduler().alphas_cumprod.double().tolist()  # not LCMScheduler's
    levels = {"kind": "discrete", "alphas_cumprod": squares, "prediction": "epsilon"}
    given = {"preconditioning": levels, "scheduler": {"_class_name": "DDPMScheduler"}}
    config = call_schedulers.config_of(call_schedulers.lcm(given))
    assert (config["beta_schedule"], config["beta_end"]) == ("linear", 0.02)
    assert torch.isclose(torch.tensor(call_schedulers.read_calls(call_schedulers.lcm(given), given, 1).sigmas[0]),
                         torch.tensor(157.4), rtol=1e-3)  # fmt: skip
