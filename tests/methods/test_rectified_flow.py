"""Rectified flow: paths and velocities, what straight pairs and DMD's regression give, micro-batches, resume."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.parts.distances import l2_distance
from dmd.methods.rectified_flow import RectifiedFlow, on_path
from dmd.models.denoiser import per_sample
from dmd.models.student_calls import Calls
from dmd.sampling.ode_solvers import euler
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.methods.test_dmd2 import FACTS, denoiser
from tests.trainings import WHOLE, FixedRows, weights

RATE = {"learning_rate": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0}
STEP = {"optimisers": {"student": RATE}, "schedule": {"warmup": 0}}
SHIFT = 0.3


def section(**keys: Any) -> Distill:
    """Of four updates of reflow."""
    method = {"name": "rectified-flow", "objective": "reflow", "batch_size": 8, "phases": [{"updates": 4}]}
    return Distill.model_validate({"method": method | keys.pop("method", {})} | STEP | keys)


def rows(num: int = 8) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    noise, image = torch.randn(2, num, 2, 1, 1, generator=random)
    return {"noise": noise, "image": image, "label": torch.randint(3, (num,), generator=random)}


def trainer(distill: Distill) -> Trainer:
    modules = {role: denoiser(1) for role in distill.method.roles()}
    return assemble(distill, modules, FACTS, distances={"none": l2_distance}, split=WHOLE)


def train(found: Trainer, first: int, stop: int) -> list[dict[str, float]]:
    phases, _ = plan(found.training.method)
    batches = loader(found, {"pairs": FixedRows(rows())}, phases, stage="distill")
    logs = [found.update(phases.clock(update), batches.take(update)) for update in range(first, stop)]
    batches.close()
    return logs


def method_of(student: nn.Module, **keys: Any) -> RectifiedFlow:
    config, distances = section(method=keys).method, {"none": l2_distance}
    return RectifiedFlow(config, {"student": student}, FACTS, torch.device("cpu"), distances)


def drawn(method: RectifiedFlow, seed: int = 0) -> dict[str, Tensor]:
    """Rows with the values that the method draws."""
    return rows() | dict(method.draw(None, None, torch.Generator().manual_seed(seed)).get("pairs", {}))


def test_times_are_uniform_and_their_levels_are_those_of_the_flow():
    method = method_of(denoiser(0), batch_size=20000, sigma_min=0.01)
    found = method.draw(None, None, torch.Generator().manual_seed(0))["pairs"]
    time = found["sigma"].double() / (1 + found["sigma"].double())
    first, last = 0.01 / 1.01, 80 / 81
    assert first <= time.min() and time.max() <= last * (1 + 1e-6)
    assert time.mean().item() == pytest.approx((first + last) / 2, abs=0.01)
    assert time.var().item() == pytest.approx((last - first) ** 2 / 12, rel=0.02)
    expected = ((time - first) / (last - first) * 10).clamp(max=9.999).long()
    assert (found["bin"] == expected).float().mean() > 0.999


def test_paths_begin_at_the_noise_of_the_pairs_and_are_straight_in_the_time_of_the_flow():
    """z_t = x_sigma / (1 + sigma) is (1 - t / last) x + t n: straight, from 80 n / 81 at the last time to x at 0."""
    pair = {name: values.double() for name, values in rows().items()}
    start, last = 80 * pair["noise"], 80 / 81
    for time in (0.0, 0.01, 0.4, last):
        sigma = time / (1 - time)
        found = on_path(pair["image"], start, torch.full((8,), sigma / 80, dtype=torch.float64)) / (1 + sigma)
        expected = (1 - time / last) * pair["image"] + time * pair["noise"]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_loss_is_the_squared_error_of_velocities():
    student = denoiser(1).double()
    method = method_of(student)
    given = {name: values.double() if values.is_floating_point() else values for name, values in drawn(method).items()}
    loss = method.loss(None, None, given, None, UpdateLog(WHOLE))
    time = per_sample(given["sigma"] / (1 + given["sigma"]), given["image"])
    last = 80 / 81
    z = (1 - time / last) * given["image"] + time * given["noise"]
    x0 = student(z / (1 - time), given["sigma"], given["label"])
    velocity = (z - x0) / time  # of a flow that is at x0 at time 0
    expected = (velocity - (given["noise"] - given["image"] / last)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


class Straight(nn.Module):
    """The denoiser of pairs (n, n + SHIFT): it knows the only line through each point."""

    sigma_data = 0.6

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        sigma = per_sample(sigma, image)
        return self.factor * (image + sigma * SHIFT) / (1 - sigma / 80 + sigma)


def test_pairs_whose_paths_do_not_cross_leave_no_loss_and_any_number_of_steps_gives_their_images():
    student = Straight()
    method = method_of(student)
    given = drawn(method)
    given["image"] = given["noise"] + SHIFT
    loss = method.loss(None, None, given, None, UpdateLog(WHOLE))
    loss.backward()
    assert loss < 1e-9 and student.factor.grad.abs() < 1e-4
    label = torch.zeros(8, dtype=torch.int64)
    for calls in (1, 2, 7):
        found = method_of(student, calls=calls).sampling()
        assert len(found.sigmas) == calls
        torch.testing.assert_close(found.draw(student, given["noise"], label), given["image"], rtol=1e-4, atol=1e-4)
    levels = torch.tensor([80.0, 3.0, 0.5, 0.0], dtype=torch.float64)
    image = euler(student, 80 * given["noise"].double(), label, levels)
    torch.testing.assert_close(image, given["image"].double(), rtol=1e-5, atol=1e-5)


def test_calls_are_evenly_spaced_in_time():
    calls = method_of(denoiser(0), calls=4).sampling()
    times = torch.tensor([sigma / (1 + sigma) for sigma in calls.sigmas], dtype=torch.float64)
    torch.testing.assert_close(times, torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64) / 4 * 80 / 81)
    assert calls.between == "ode" and calls.sigmas[0] == 80.0


def test_distillation_is_dmds_regression_bit_for_bit():
    new = section(method={"objective": "distillation"})
    old = {"name": "dmd", "matching_weight": 0.0, "regression_weight": 1.0, "regression_batch_size": 8}
    old = Distill.model_validate({"method": {**old, "phases": [{"updates": 4}]}} | STEP)
    found = [trainer(each) for each in (new, old)]
    logs = [train(each, 0, 4) for each in found]
    assert torch.equal(*(weights(each.networks["student"]) for each in found))
    assert [log["loss/distillation"] for log in logs[0]] == [log["loss/regression"] for log in logs[1]]
    assert found[0].method.sampling() == Calls((80.0,), between="ode")


def test_at_the_level_of_the_noise_reflow_has_the_loss_of_the_distillation():
    given = drawn(reflow := method_of(denoiser(1)))
    given["sigma"] = torch.full((8,), 80.0)
    distilled = method_of(denoiser(1), objective="distillation")
    losses = [method.loss(None, None, given, None, UpdateLog(WHOLE)) for method in (reflow, distilled)]
    torch.testing.assert_close(losses[0], losses[1] * (81 / 80) ** 2)


def test_a_null_sigma_is_the_highest_of_the_file():
    config, device = section(method={"sigma": None}).method, torch.device("cpu")
    facts = Facts(shape=(2, 1, 1), num_classes=3, sigma_data=0.6, sigma_max=14.0)
    assert RectifiedFlow(config, {"student": denoiser(0)}, facts, device).sampling().sigmas == (14.0,)
    with pytest.raises(ValueError, match=r"distill.method.sigma: null is the highest"):
        RectifiedFlow(config, {"student": denoiser(0)}, FACTS, device)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"objective": "distillation", "calls": 2}, "calls: 2, but objective distillation trains one call"),
        ({"objective": "distillation", "sigma_min": 0.1}, "sigma_min: 0.1, but objective distillation"),
        ({"metric": {"kind": "lpips", "file": "vgg.pth"}}, "metric: objective reflow takes none"),
        ({"sigma_min": 90.0}, "sigma_max 80 is not above sigma_min 90"),
    ],
)
def test_contradictions_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        section(method=keys)
