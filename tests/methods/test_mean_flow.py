"""MeanFlow: the identity of the mean velocity, the second time of the student's network, its file, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import dmd
from dmd.config.methods.mean_flow import MeanFlow as Section
from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.mean_flow import MeanFlow
from dmd.models import loading
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample
from dmd.models.networks import build, extended
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling import call_schedulers
from dmd.sampling.solvers import solve
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.image_shards import image_shards
from tests.methods.test_every_method import METHODS, NETWORK, streams, trainer
from tests.trainings import NAMES, WHOLE, distil

MEAN, STD = 0.3, 0.5
GAUSSIAN = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.tensor([1.0]))
UNET = {"kind": "ddpmpp", "resolution": 4, "channels": 1, "width": 16, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [], "num_classes": 3}


class Exact(nn.Module):
    """The student that knows the ODE of a Gaussian, times a factor: the x0 whose DDIM step to `end` is exact."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor).double())

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, end: Tensor) -> Tensor:
        ratio = per_sample(end / sigma, image)
        spread = per_sample(((STD**2 + end.square()) / (STD**2 + sigma.square())).sqrt(), image)
        return self.factor * (MEAN + (image - MEAN) * spread - ratio * image) / (1 - ratio)


def method_of(student: nn.Module, **keys: Any) -> MeanFlow:
    config = Section.model_validate({"name": "mean-flow", **keys})
    networks: Any = {"teacher": GAUSSIAN, "student": student}
    return MeanFlow(config, networks, Facts((1, 1, 1), 0, STD), torch.device("cpu"))


def point(z: float, r: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Image, level and end of a point z of the paper."""
    image = torch.full((1, 1, 1, 1), z / (1 - t), dtype=torch.float64)
    return image, torch.tensor([t / (1 - t)]).double(), torch.tensor([r / (1 - r)]).double()


LABEL = torch.tensor([-1])
CALLS = Calls((10.0, 0.8), between="ode", map="mean-flow")


def test_velocities_of_a_gaussian_are_those_of_the_paper():
    image, sigma, end = point(0.9, 0.2, 0.7)
    velocity = (0.9 - GAUSSIAN(image, sigma, LABEL)) / 0.7
    mean = (0.9 - Exact()(image, sigma, LABEL, end=end)) / 0.7
    assert float(velocity) == pytest.approx(0.68780, abs=1e-5)
    assert float(mean.detach()) == pytest.approx(0.30799, abs=1e-5)


@pytest.mark.parametrize(("z", "r", "t"), [(0.9, 0.2, 0.7), (-0.4, 0.0, 0.9), (2.0, 0.0, 80 / 81), (0.3, 0.45, 0.5)])
def test_exact_mean_velocity_satisfies_the_identity(z, r, t):
    image, sigma, end = point(z, r, t)
    student = Exact()
    target = method_of(student).target(image, image, sigma, end, LABEL)
    torch.testing.assert_close(target, student(image, sigma, LABEL, end=end).detach(), rtol=1e-6, atol=1e-6)
    other = Exact(0.9)
    target = method_of(other).target(image, image, sigma, end, LABEL)
    differs = abs(float((target - other(image, sigma, LABEL, end=end)).detach())) > 1e-3
    assert differs == (r > 0)  # to time 0, any function that is constant along the ODE satisfies it


@pytest.mark.parametrize("teach", ["distillation", "training"])
def test_target_of_equal_times_is_the_teacher_or_the_image(teach):
    found = trainer(METHODS["mean-flow"] | {"teach": teach}).method
    assert isinstance(found, MeanFlow)
    image, noised = torch.randn(2, 4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    sigma, label = torch.tensor([0.1, 1.0, 5.0, 40.0]), torch.tensor([0, 1, 2, -1])
    expected = found.networks["teacher"](noised, sigma, label) if teach == "distillation" else image
    torch.testing.assert_close(found.target(noised, image, sigma, sigma, label), expected)
    assert ("teacher" in found.networks) == (teach == "distillation")  # type: ignore[operator]


def test_loss_is_the_weighted_squared_error_of_the_velocity():
    student = Exact(0.9)
    for power, c in ((0.75, 1e-3), (0.0, 1.0), (1.0, 0.5)):
        method = method_of(student, teach="training", power=power, c=c)
        clock = plan(method.config)[0].clock(0)
        (step,) = method.steps(method.config, clock)
        _, sigma, end = point(0.9, 0.2, 0.7)
        image = torch.linspace(-1, 2, 8).double().reshape(1, 2, 2, 2)
        rows = {"image": image, "noise": torch.zeros_like(image), "sigma": sigma, "end": end, "label": LABEL}
        error = (student(image, sigma, LABEL, end=end) - method.target(image, image, sigma, end, LABEL)) / 0.7
        square = error.square().sum()  # over the values of the image
        found = method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))
        torch.testing.assert_close(found, square / (square.detach() + c) ** power)
        gradients = (torch.autograd.grad(each, student.factor)[0] for each in (found, square))
        first, second = gradients
        torch.testing.assert_close(first, second / (square.detach() + c) ** power)  # the weight has no gradient


def test_levels_are_ordered_and_a_fraction_of_them_equal():
    found = trainer(METHODS["mean-flow"] | {"batch_size": 4000, "calls": [3.0], "equal": 0.25}).method
    clock = plan(found.config)[0].clock(0)
    rows = found.draw(found.steps(found.config, clock)[0], clock, torch.Generator().manual_seed(0))["images"]
    sigma, end = rows["sigma"], rows["end"]
    assert bool((end <= sigma).all()) and float(sigma.max()) == 3.0
    same = (end == sigma)[sigma < 3.0]
    assert float(same.float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("network", [NETWORK, UNET], ids=["mlp", "unet"])
def test_second_time_changes_nothing_at_first_and_then_enters(network):
    torch.manual_seed(0)
    before = Denoiser(build(network), sigma_data=0.6)
    for parameter in before.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    after = loading.extended(before, network, second_time=True)
    image = torch.randn(3, network["channels"], network["resolution"], network["resolution"])
    sigma, label, end = torch.tensor([0.1, 1.0, 9.0]), torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.5, 8.0])
    assert torch.equal(before(image, sigma, label), after(image, sigma, label, end=end))
    after.network.second_time.linear.weight.data.normal_()
    assert not torch.allclose(after(image, sigma, label, end=end), after(image, sigma, label))
    torch.testing.assert_close(after(image, sigma, label, end=torch.zeros(3)), after(image, sigma, label))
    with pytest.raises(ValueError, match=r"noise_condition: shape \(3, 2\) is not \(B,\)"):
        before.network(image, torch.zeros(3, 2), label)
    with pytest.raises(ValueError, match=r"noise_condition: shape \(3,\) is not \(B, 2\)"):
        after.network(image, torch.zeros(3), label)


def test_networks_of_others_cannot_take_a_second_time():
    with pytest.raises(ValueError, match="network 'unet2d' cannot take a second time"):
        extended({"kind": "unet2d", "config": {}}, second_time=True)


def test_distillation_writes_a_student_with_a_second_time_that_draws_in_one_call(tmp_path: Path):
    torch.manual_seed(0)
    network, sizes = {**UNET, "resolution": 8, "num_classes": 10}, {"shape": [1, 8, 8], "num_classes": 10}
    weights = {f"ema.{name}": value for name, value in build(network).state_dict().items()}
    teacher = tmp_path / "denoiser.safetensors"
    tensor_files.save(teacher, weights, {"kind": "train", "network": network, "sigma_data": 0.75, **sizes})
    method = {"name": "mean-flow", "batch_size": 4, "calls": [10.0, 0.8], "phases": [{"updates": 4}]}
    section = {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}}
    images = image_shards(tmp_path, {"kind": "digits", "split_seed": 0, "num_training": 16})
    folder = distil(tmp_path, section | {"monitor": None}, teacher=teacher, images=images)
    tensors, facts = tensor_files.load(folder / NAMES[0])
    assert facts["network"] == extended(network, second_time=True) and Calls.of(facts["calls"]) == CALLS
    assert bool(tensors["raw.second_time.linear.weight"].any())
    one, two = (dmd.load(folder / NAMES[0], calls=calls)(num=3, label=4) for calls in (1, 2))
    assert one.shape == (3, 1, 8, 8) and bool(one.isfinite().all()) and not torch.allclose(one, two)


def test_calls_of_the_exact_mean_velocity_end_where_the_ode_does():
    noise, label = torch.randn(4, 1, 1, 1).double(), torch.full((4,), -1)
    expected = MEAN + (10 * noise - MEAN) * STD / (STD**2 + 100) ** 0.5

    def student(image: Tensor, sigma: Tensor, label: Tensor, end: Tensor | None = None) -> Tensor:
        return Exact()(image, sigma, label, end=torch.zeros_like(sigma) if end is None else end)

    for calls in (CALLS, CALLS.first(1)):
        found, num = solve(student, noise, label, {"name": "student", "calls": calls.facts()})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert num == len(calls.sigmas)
    with pytest.raises(ValueError, match="between noise, but the steps of a mean-flow map are those of the ODE"):
        Calls((10.0,), map="mean-flow")
    with pytest.raises(ValueError, match="its map is mean-flow, and schedulers of diffusers"):
        call_schedulers.find(CALLS, {})


def test_passes_of_an_update_count_the_derivative():
    """Teacher 1; the student's value and derivative 2, then 3."""
    (found,) = measured_steps(trainer(METHODS["mean-flow"]), streams())
    assert found.parts["images"].passes == {"teacher": 1, "student": 5}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teach": "training", "guidance": 2.0}, "guidance: 2, but teach training has no teacher"),
        ({"equal": 1.0}, "less than 1"),
        ({"calls": [0.8, 10.0]}, r"\[0.8, 10.0\] do not descend"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate({"name": "mean-flow"} | keys)


@pytest.mark.parametrize("name", ["mean-flow", "scm"])
@pytest.mark.parametrize("switch", [{"compile": True}, {"dtype": "bfloat16"}])
def test_switches_without_forward_mode_derivatives_are_refused(name, switch):
    (key,) = switch
    with pytest.raises(ValidationError, match=f"compute.{key}: method {name} does not support it"):
        Distill.model_validate({"method": METHODS[name], "compute": switch})
