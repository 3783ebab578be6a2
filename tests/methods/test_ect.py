"""ECT: the two levels by stage, denoising where the lower one is 0, and what the section refuses."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dmd.config.methods.ect import Ect as Section
from dmd.config.training import Distill
from dmd.methods.ect import Ect, gap, stage
from dmd.methods.parts.distances import pseudo_huber
from dmd.models.student_calls import Calls
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import plan
from tests.methods.test_every_method import METHODS, steps, trainer
from tests.trainings import WHOLE


def method_of(**keys: Any) -> Ect:
    found = trainer(METHODS["ect"] | keys).method
    assert isinstance(found, Ect)
    return found


def loss(method: Ect, **rows: Tensor) -> Tensor:
    """Of one image with label 1."""
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    image, noise = torch.tensor([[0.3, -0.8], [0.5, 0.7]])[:, None, :, None, None]
    values = {"image": image, "noise": noise, "label": torch.tensor([1]), "bin": torch.tensor([0]), **rows}
    return method.loss(step, step.parts[0], values, clock, UpdateLog(WHOLE))


def test_bfloat16_is_refused():
    with pytest.raises(ValidationError, match=r"compute\.dtype: method ect does not support it"):
        Distill.model_validate({"method": METHODS["ect"], "compute": {"dtype": "bfloat16"}})


def test_gap_is_the_whole_level_at_first_below_ln_7_and_then_shrinks_by_q():
    sigma, config = torch.tensor([0.01, 1.9, math.log(7) * 0.999, math.log(7) * 1.001, 5.0, 80.0]), Section(name="ect")
    first = gap(sigma, config, 0)
    assert torch.equal(first[:3], sigma[:3]) and bool((first[3:] < sigma[3:]).all())
    assert float(first[-1]) == pytest.approx(40.0)  # n is 1 at high levels
    for number in (3, 4, 9):
        wide = 1 + 8 * torch.sigmoid(-sigma)
        torch.testing.assert_close(gap(sigma, config, number), (sigma * wide / 2 ** (number + 1)).clamp(max=sigma))
    assert bool((gap(sigma, config, 40) <= 1e-10 * sigma).all())  # the lower level becomes the upper one


def test_stages_follow_each_other():
    config = Section.model_validate({"name": "ect", "stage_updates": 3, "phases": [{"updates": 5}, {"updates": 4}]})
    phases, _ = plan(config)
    assert [stage(config, phases.clock(update)) for update in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("weighting", ["gap", "network"])
def test_loss_at_a_lower_level_of_zero_is_the_denoising_error_by_the_norm(weighting):
    method, sigma = method_of(weighting=weighting), torch.tensor([0.7])
    image, noise, student = torch.tensor([[[[0.3]], [[-0.8]]]]), torch.tensor([[[[0.5]], [[0.7]]]]), "student"
    x0 = method.networks[student](image + 0.7 * noise, sigma, torch.tensor([1]))
    weight = 1 / 0.7 if weighting == "gap" else 1 / 0.7**2 + 1 / 0.6**2
    torch.testing.assert_close(loss(method, sigma=sigma, gap=sigma), weight * (x0 - image).norm())


def test_target_is_the_student_at_the_lower_level_with_the_same_noise_and_without_gradient():
    method, sigma, label = method_of(c=0.1), torch.tensor([2.0]), torch.tensor([1])
    image, noise, student = torch.tensor([[[[0.3]], [[-0.8]]]]), torch.tensor([[[[0.5]], [[0.7]]]]), "student"
    network = method.networks[student]
    with torch.no_grad():
        target = network(image + 1.5 * noise, torch.tensor([1.5]), label)
    square = (network(image + 2.0 * noise, sigma, label) - target).square().sum()
    expected = ((square + 0.01).sqrt() - 0.1) / 0.5
    found = loss(method, sigma=sigma, gap=torch.tensor([0.5]))
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, [*network.parameters()]),
        torch.autograd.grad(expected, [*network.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_passes_at_the_lowest_levels_are_told_their_own_level():
    method, sigma, gap_below = method_of(), torch.tensor([8.0e-4]), torch.tensor([3.0e-4])
    image, noise, label = torch.tensor([[[[0.3]], [[-0.8]]]]), torch.tensor([[[[0.5]], [[0.7]]]]), torch.tensor([1])
    network = method.networks["student"]
    with torch.no_grad():
        lower = sigma - gap_below
        target = network(image + lower * noise, lower, label)
        expected = (network(image + sigma * noise, sigma, label) - target).norm() / 3.0e-4
        found = loss(method, sigma=sigma, gap=gap_below)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_norm_has_a_gradient_where_student_and_target_agree():
    image = torch.zeros(1, 2, 1, 1, requires_grad=True)
    pseudo_huber(image, torch.zeros(1, 2, 1, 1), 0.0).sum().backward()
    assert image.grad is not None and not bool(image.grad.any())


def test_levels_are_drawn_log_normal_and_logged_in_bins_of_equal_weight():
    method = method_of(batch_size=4000, sigma_log_mean=-0.5, sigma_log_std=1.5)
    clock = plan(method.config)[0].clock(0)
    rows = method.draw(method.steps(method.config, clock)[0], clock, torch.Generator().manual_seed(0))["images"]
    assert float(rows["sigma"].log().mean()) == pytest.approx(-0.5, abs=0.1)
    assert float(rows["sigma"].log().std()) == pytest.approx(1.5, abs=0.1)
    assert all(abs(int(num) - 400) < 80 for num in rows["bin"].bincount(minlength=10))


def test_dropout_is_the_same_in_both_passes_and_off_unless_it_is_wanted():
    found = trainer(METHODS["ect"] | {"dropout": True})
    assert [step.dropout for step, _ in steps(found)[1]] == [("student",)]
    replayed: list[int] = []
    found.method._replay = lambda: replayed.append(1)
    sigma = torch.tensor([0.7])
    assert isinstance(found.method, Ect)
    loss(found.method, sigma=sigma, gap=sigma / 2)
    assert replayed == [1] and [step.dropout for step, _ in steps(trainer(METHODS["ect"]))[1]] == [()]


def test_student_draws_with_fresh_noise_at_the_levels_of_its_calls():
    assert method_of().sampling() == Calls((80.0,))
    method = method_of(calls=[80.0, 0.821])
    assert method.sampling() == Calls((80.0, 0.821), between="noise")
    assert set(method.config.calls_kept()) == {1, 2} and method.config.final_calls() == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"calls": [0.8, 80.0]}, r"\[0.8, 80.0\] do not descend"),
        ({"q": 1.0}, "greater than or equal to 1.01"),
        ({"stage_updates": 1, "phases": [{"updates": 20}]}, "20 stages of 1 updates, .* longer stages or a smaller q"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate({"name": "ect"} | keys)
