"""BOOT: signals of a Gaussian world, steps and boundary, the student's input, its file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.training import Distill
from dmd.methods.base import Facts, Part
from dmd.methods.boot import Boot, signal_step
from dmd.models import loading
from dmd.models.student_calls import Calls
from dmd.sampling.sampler import Sampler
from dmd.train.log_columns import UpdateLog
from tests.methods.test_dmd2 import FACTS, denoiser
from tests.methods.test_progressive import MEAN, STD, gaussian
from tests.trainings import WHOLE, distil

BOUNDARY = Part("boundary", 4, "noise")
STEPS = Part("noise", 4, "noise")


def section(**keys: Any) -> Distill:
    """Of four updates."""
    method = {"name": "boot", "levels": 9, "boundary_weight": 2.0, "batch_size": 8, "boundary_batch_size": 6}
    method |= {"phases": [{"updates": 4}]} | keys.pop("method", {})
    rate = {"learning_rate": 1e-3, "betas": [0.9, 0.999]}
    return Distill.model_validate({"method": method, "optimisers": {"student": rate}, "schedule": {"warmup": 0}} | keys)


class ExactSignal(nn.Module):
    """y(s) of the Gaussian's path that begins at 80 n + its x0 there, or at 80 n."""

    sigma_data = STD

    def __init__(self, *, at_x0: bool = True) -> None:
        super().__init__()
        self.factor, self.at_x0 = nn.Parameter(torch.ones((), dtype=torch.float64)), at_x0

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, *, level: Tensor) -> Tensor:
        level = level.double().reshape(-1, 1, 1, 1)
        start = image + gaussian()(image, sigma, label) if self.at_x0 else image
        end = MEAN + (start - MEAN) * ((STD**2 + level**2) / (STD**2 + 80**2)) ** 0.5
        return self.factor * (end - level * image / 80)


def method_of(student: nn.Module, teacher: Any = None, **keys: Any) -> Boot:
    networks = {TEACHER: teacher or gaussian(), STUDENT: student}
    return Boot(section(method=keys).method, networks, Facts((1, 1, 1), 0, STD, sigma_max=80.0), torch.device("cpu"))


def rows(num: int, levels: int) -> dict[str, Tensor]:
    noise = torch.randn(num, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"noise": noise, "label": torch.full((num,), -1), "number": torch.arange(num) % (levels - 1)}


@pytest.mark.parametrize(("at_x0", "signal", "slope"), [(True, 0.31752, -0.0034605), (False, 0.29854, -0.0072189)])
def test_signals_and_slopes_of_a_gaussian_have_the_reference_values(at_x0, signal, slope):
    noise, label = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64), torch.tensor([-1])
    five, eighty = (torch.tensor([value], dtype=torch.float64) for value in (5.0, 80.0))
    found = ExactSignal(at_x0=at_x0)(80 * noise, eighty, label, level=five).detach()
    assert found.item() == pytest.approx(signal, abs=1e-5)
    after = signal_step(gaussian(), found, noise, (five, five - 0.5), label, heun=False)
    assert ((after - found) / -0.5).item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 4)])
def test_loss_of_the_exact_student_falls_with_the_square_of_the_steps_error(solver, order):
    losses = []
    for levels in (50, 100, 200):
        found = method_of(ExactSignal(), levels=levels, solver=solver, sigma_min=0.1, rho=3.0)
        found.sigmas = found.sigmas.double()
        losses.append(found.loss(None, STEPS, rows(2000, levels), None, UpdateLog(WHOLE)).item())
    for coarse, fine in zip(losses, losses[1:], strict=False):
        assert coarse / fine == pytest.approx(2**order, rel=0.25)


def test_only_the_path_that_begins_at_the_teachers_x0_has_no_loss_at_the_boundary():
    for at_x0 in (True, False):
        found = method_of(ExactSignal(at_x0=at_x0)).loss(None, BOUNDARY, rows(20, 9), None, UpdateLog(WHOLE))
        assert (found.item() < 1e-20) == at_x0


def test_a_copy_of_the_teacher_fulfils_the_boundary():
    teacher = denoiser(0)
    config, networks = section().method, {TEACHER: teacher, STUDENT: copy.deepcopy(teacher)}
    found = Boot(config, networks, FACTS, torch.device("cpu"))
    given = {"noise": torch.randn(5, 2, 1, 1), "label": torch.tensor([0, 1, 2, 0, 1])}
    assert found.loss(None, BOUNDARY, given, None, UpdateLog(WHOLE)) == 0


def test_level_is_the_condition_of_the_network_alone():
    student, image, label = denoiser(0), torch.randn(3, 2, 1, 1), torch.tensor([0, 1, 2])
    high, low = torch.full((3,), 80.0), torch.full((3,), 0.5)
    assert torch.equal(student(image, high, label, level=high), student(image, high, label))
    c_skip, c_out, c_in, _ = (values[0] for values in student.preconditioning(high))
    expected = c_skip * image + c_out * student.network(c_in * image, student.preconditioning(low).condition, label)
    torch.testing.assert_close(student(image, high, label, level=low), expected)


def test_steps_are_drawn_uniformly_and_each_leads_to_the_level_below():
    found = method_of(ExactSignal(), batch_size=8000)
    numbers = found.draw(None, None, torch.Generator().manual_seed(0))["noise"]["number"]
    counts = numbers.bincount(minlength=8) / 8000
    assert len(found.sigmas) == 9 and numbers.max() == 7 and (counts - 1 / 8).abs().max() < 0.02
    assert (found.sigmas.diff() < 0).all() and found.sampling() == Calls((80.0,), map="signal", sigma_min=0.002)
    assert Calls.of(found.sampling().facts()) == found.sampling()


def test_a_target_has_no_gradient():
    """The student's own signal at the upper level is a constant of the loss."""
    student, found = ExactSignal(), []
    method = method_of(student)
    method.sigmas = method.sigmas.double()
    student.register_forward_hook(lambda module, inputs, output: found.append(output.requires_grad))
    method.loss(None, STEPS, rows(4, 9), None, UpdateLog(WHOLE))
    assert found == [False, True]


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"sigma_min": 90.0}, "sigma_max 80 is not above sigma_min 90"), ({"boundary_weight": 0.0}, "boundary_weight")],
)
def test_contradictions_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        section(method=keys)


def test_step_and_weight_of_the_boundary_have_no_default():
    with pytest.raises(ValidationError, match=r"(?s)levels.*boundary_weight"):
        Distill.model_validate({"method": {"name": "boot", "phases": [{"updates": 4}]}})


def test_the_file_is_sampled_in_one_call_with_the_condition_of_the_lowest_level(teacher_file: Path, tmp_path: Path):
    training = {"method": section().spec()["method"] | {"phases": [{"updates": 2}]}, "monitor": None}
    path = distil(tmp_path, training, teacher=teacher_file) / "generator.safetensors"
    batch = next(iter(Sampler(path, solver=None).batches(range(3))))
    student, facts = loading.load_denoiser(path)
    assert batch.network_calls == 1 and facts["sigma"] == 80.0
    levels = torch.full((3,), 80.0), torch.full((3,), 0.002)
    with torch.no_grad():
        expected = student(80 * batch.noise, levels[0], batch.label, level=levels[1])
    torch.testing.assert_close(batch.image, expected, rtol=1e-5, atol=1e-5)
