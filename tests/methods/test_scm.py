"""sCM: the tangent of an exact consistency model, the paper's parametrisation, the learned weight, refusals."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.methods.scm import Scm as Section
from dmd.methods.base import Facts
from dmd.methods.parts.forward_derivative import forward_derivative
from dmd.methods.parts.uncertainty import Uncertainty
from dmd.methods.scm import Scm, warmup
from dmd.models.denoiser import GaussianMixtureDenoiser, per_sample
from dmd.models.student_calls import Calls
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.methods.test_every_method import METHODS, streams, trainer
from tests.trainings import WHOLE

MEAN, STD = 0.3, 0.5
GAUSSIAN = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.tensor([1.0]))
POINTS = torch.tensor([[0.8], [-1.0], [3.0]]).double().reshape(3, 1, 1, 1)
SIGMAS, LABELS = torch.tensor([0.01, 0.7, 80.0]).double(), torch.full((3,), -1)


class Exact(nn.Module):
    """The consistency model of a Gaussian."""

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return MEAN + (image - MEAN) * per_sample(STD / (STD**2 + sigma.square()).sqrt(), image)


class Wrong(nn.Module):
    """No consistency model, with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.8).double())

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.factor * image) / (1 + per_sample(sigma, image))


def method_of(student: nn.Module, **keys: Any) -> Scm:
    config = Section.model_validate({"name": "scm", "phases": [{"updates": 9}], **keys})
    networks: Any = {"teacher": GAUSSIAN, "student": student, "uncertainty": Uncertainty().double()}
    return Scm(config, networks, Facts((1, 1, 1), 0, STD), torch.device("cpu"))


def test_tangent_of_the_exact_consistency_model_is_zero():
    method = method_of(Exact())
    _, tangent = method.tangent(POINTS, POINTS, SIGMAS, LABELS, 1.0)
    torch.testing.assert_close(tangent, torch.zeros_like(tangent), rtol=0, atol=1e-6)
    assert bool((method_of(Wrong()).tangent(POINTS, POINTS, SIGMAS, LABELS, 1.0)[1].abs() > 1e-3).all())


@pytest.mark.parametrize("full", [0.0, 0.4, 1.0])
def test_tangent_is_that_of_the_papers_network(full):
    """g = -cos^2 t (sd F - dz/dt) - q cos t sin t (z + sd dF/dt), with F and its derivative computed from D."""
    time = torch.tensor([0.2, 0.9, 1.4]).double()
    position = torch.tensor([0.8, -0.5, 0.3]).double().reshape(3, 1, 1, 1)  # z
    student = Wrong()
    cosine, sine = (per_sample(each, position) for each in (time.cos(), time.sin()))

    def network(z: Tensor, t: Tensor) -> Tensor:
        cosine, sine = per_sample(t.cos(), z), per_sample(t.sin(), z)
        return (cosine * z - student(z / cosine, STD * t.tan(), LABELS)) / (STD * sine)

    sigma = STD * time.tan()
    noised = position / cosine
    slope = (cosine * position - GAUSSIAN(noised, sigma, LABELS)) / sine  # dz/dt = sd F of the teacher
    output, change = forward_derivative(network, (position, time), (slope, torch.ones(3).double()))
    expected = -cosine.square() * (STD * output - slope) - full * cosine * sine * (position + STD * change)
    x0, found = method_of(student).tangent(noised, noised, sigma, LABELS, full)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x0, student(noised, sigma, LABELS).detach())


def test_slope_of_a_gaussian_is_that_of_the_sheet():
    """z = .8 at t = .9: dz/dt = -.23500."""
    noised, sigma = torch.full((1, 1, 1, 1), 0.8 / math.cos(0.9)).double(), torch.tensor([STD * math.tan(0.9)]).double()
    slope = (math.cos(0.9) * 0.8 - GAUSSIAN(noised, sigma, LABELS[:1])) / math.sin(0.9)
    assert float(slope) == pytest.approx(-0.23500, abs=1e-5)


def loss(method: Scm, update: int = 8) -> Tensor:
    clock = plan(method.config)[0].clock(update)
    (step,) = method.steps(method.config, clock)
    rows = {"image": POINTS, "noise": torch.zeros_like(POINTS), "sigma": SIGMAS, "label": LABELS}
    return method.loss(step, step.parts[0], rows | {"bin": torch.zeros(3, dtype=torch.int64)}, clock, UpdateLog(WHOLE))


def test_loss_of_images_of_several_values_has_the_norm_of_the_whole_tangent_and_the_mean_of_the_error():
    """The student's own change is 0 in value, so the error is the normalised tangent."""
    method = method_of(Wrong(), teach="training", tangent_warmup=0)
    image, noise = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    clock = plan(method.config)[0].clock(8)
    (step,) = method.steps(method.config, clock)
    rows = {"image": image, "noise": noise, "sigma": SIGMAS, "label": LABELS, "bin": torch.zeros(3, dtype=torch.int64)}
    found = method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))
    noised = image + per_sample(SIGMAS, image) * noise
    tangent = method.tangent(noised, image, SIGMAS, LABELS, 1.0)[1]
    length = tangent.square().sum((1, 2, 3)).sqrt()
    error = tangent.square().sum((1, 2, 3)) / (length + 0.1) ** 2 / 8 / SIGMAS
    weight = method.networks["uncertainty"](SIGMAS)
    torch.testing.assert_close(found, (weight.exp() * error - weight).mean())


def test_gradient_moves_the_student_against_its_change_along_the_ode():
    """The gradient of F . (-2 g) / (d s) with the normalised tangent, F = (cos t z - D) / (sd sin t)."""
    student = Wrong()
    method = method_of(student, tangent_warmup=0)
    loss(method).backward()
    assert student.factor.grad is not None
    found = student.factor.grad.clone()
    student.factor.grad = None
    tangent = method.tangent(POINTS, POINTS, SIGMAS, LABELS, 1.0)[1]
    unit = tangent / (tangent.abs() + 0.1)
    sine = per_sample(SIGMAS / (SIGMAS.square() + STD**2).sqrt(), POINTS)
    output = -student(POINTS, SIGMAS, LABELS) / (STD * sine)
    (output * -2 * unit / per_sample(SIGMAS, POINTS)).mean().backward()
    torch.testing.assert_close(found, student.factor.grad)


def test_weight_is_best_at_minus_the_logarithm_of_the_error():
    method = method_of(Wrong(), tangent_warmup=0)
    weight = method.networks["uncertainty"]
    assert isinstance(weight, Uncertainty) and not bool(weight(SIGMAS).any())
    tangent = method.tangent(POINTS, POINTS, SIGMAS, LABELS, 1.0)[1].flatten()
    error = (tangent / (tangent.abs() + 0.1)).square() / SIGMAS
    torch.testing.assert_close(loss(method), error.mean())
    for offset in (0.0, 0.5, -0.5):
        weight.zero_grad()
        weight.linear.bias.data.fill_(-math.log(float(error.mean())) + offset)
        loss(method).backward()
        assert weight.linear.bias.grad is not None
        assert float(weight.linear.bias.grad) == pytest.approx(math.exp(offset) - 1, abs=1e-6)


def test_derivative_gets_its_weight_little_by_little():
    config = Section.model_validate({"name": "scm", "tangent_warmup": 4, "phases": [{"updates": 9}]})
    phases, _ = plan(config)
    assert [warmup(config, phases.clock(update)) for update in (0, 1, 4, 8)] == [0.0, 0.25, 1.0, 1.0]
    assert warmup(config.model_copy(update={"tangent_warmup": 0}), phases.clock(0)) == 1.0


def test_slope_comes_from_the_image_without_a_teacher():
    found = trainer(METHODS["scm"] | {"teach": "training"}).method
    assert isinstance(found, Scm) and "teacher" not in found.networks  # type: ignore[operator]
    image, noised = torch.randn(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    sigma, label = torch.tensor([0.3, 2.0, 30.0]), torch.tensor([0, 1, 2])
    x0, tangent = found.tangent(noised, image, sigma, label, 0.0)
    sine = per_sample(sigma / (sigma.square() + 0.6**2).sqrt(), image)
    torch.testing.assert_close(tangent, (1 - sine.square()) * (x0 - image) / sine)


def test_passes_of_an_update_count_the_derivative():
    """Teacher 1; the student's value and derivative 2, then 3."""
    (found,) = measured_steps(trainer(METHODS["scm"]), streams())
    assert found.parts["images"].passes == {"teacher": 1, "student": 5}


def test_student_draws_with_fresh_noise_at_the_levels_of_its_calls():
    found = trainer(METHODS["scm"] | {"calls": [80.0, 0.98]}).method
    assert found.sampling() == Calls((80.0, 0.98), between="noise") and set(found.config.calls_kept()) == {1, 2}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teach": "training", "guidance": 2.0}, "guidance: 2, but teach training has no teacher"),
        ({"calls": [0.8, 80.0]}, r"\[0.8, 80.0\] do not descend"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate(METHODS["scm"] | keys)
