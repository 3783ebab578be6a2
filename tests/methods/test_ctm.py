"""CTM: the jump, the exact map of a Gaussian, consistency distillation as a case, levels, target, file, refusals."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import dmd
from dmd.config.methods.consistency import Consistency as ConsistencySection
from dmd.config.methods.ctm import Ctm as Section
from dmd.methods.base import Facts, Rows
from dmd.methods.consistency import Consistency
from dmd.methods.ctm import Ctm
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample
from dmd.models.networks import build
from dmd.models.student_calls import consistency
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.image_shards import image_shards
from tests.methods.test_every_method import METHODS, NETWORK, streams, train, trainer
from tests.trainings import NAMES, WHOLE, distil, weights

MEAN, STD, SIGMA_MIN = 0.3, 0.5, 0.002
SHAPE = (2, 1, 1)


def squares(image: Tensor, other: Tensor) -> Tensor:
    return (image - other).square().mean()


def method_of(student: Any, teacher: Any = None, target: Any = None, **keys: Any) -> Ctm:
    """The target is the student without gradients if none is given."""
    config = Section.model_validate({"name": "ctm", "phases": [{"updates": 1}], **keys})
    if target is None and student is not None:
        target = copy.deepcopy(student).requires_grad_(False)
    networks: Any = {"student": student, "teacher": teacher, "target": target}
    return Ctm(config, networks, Facts(SHAPE, 0, STD), torch.device("cpu"), {"none": squares})


def loss_of(method: Any, rows: Rows) -> Tensor:
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    return method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))


def gaussian(std: float = STD, mean: float = MEAN) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(torch.full((1, *SHAPE), mean), torch.tensor([std]), torch.ones(1))


def rows_of(path: Tensor, end: list[float]) -> Rows:
    """Images and noise for levels from t to u (B, n + 1) and levels s, float64."""
    random = torch.Generator().manual_seed(len(path))
    image, noise = torch.randn(2, len(path), *SHAPE, generator=random, dtype=torch.float64)
    path, bins = path.double(), torch.zeros(len(path), dtype=torch.int64)
    label, levels = torch.full((len(path),), -1), torch.tensor(end, dtype=torch.float64)
    return {"image": image, "noise": noise, "label": label, "path": path, "end": levels, "bin": bins}


class Exact(Denoiser):
    """The student whose steps follow the ODE of a Gaussian, with an error that is constant."""

    def __init__(self, std: float = STD, shift: float = 0.0) -> None:
        super().__init__(build({**NETWORK, "second_time": True}), sigma_data=STD)
        self.std, self.shift = std, shift

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, *, level: Any = None, end: Any = None) -> Tensor:
        end = torch.zeros_like(sigma) if end is None else end
        ratio = per_sample(end / sigma, image)
        spread = per_sample(((self.std**2 + end.square()) / (self.std**2 + sigma.square())).sqrt(), image)
        x0 = (MEAN + (image - MEAN) * spread - ratio * image) / (1 - ratio)
        return torch.where(ratio == 1, gaussian(self.std)(image, sigma, label), x0) + self.shift


def test_jump_to_the_same_level_is_the_identity_for_every_network():
    torch.manual_seed(0)
    student = Denoiser(build({**NETWORK, "second_time": True}), sigma_data=STD)
    for parameter in student.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    image, sigma, label = torch.randn(3, *SHAPE), torch.tensor([0.002, 1.3, 70.0]), torch.zeros(3, dtype=torch.int64)
    method = method_of(student)
    assert torch.equal(method.jump("student", image, sigma, sigma, label), image)
    assert not torch.allclose(method.jump("student", image, sigma, 0.9 * sigma, label), image)


def heun_loss(num: int, shift: float = 0.0) -> float:
    """Of steps from t to u in `num` parts of equal ratio."""
    place = torch.linspace(0, 1, num + 1, dtype=torch.float64)
    path = torch.stack([5.0 * (2.0 / 5.0) ** place, 1.0 * (0.2 / 1.0) ** place])
    method = method_of(Exact(shift=shift), gaussian())
    return float(loss_of(method, rows_of(path, [0.5, 0.2])))


def test_only_the_error_of_heuns_method_is_left_of_the_loss_of_the_exact_map():
    """The error falls by 4 when the steps double, its square by 16."""
    first, second, third = heun_loss(16), heun_loss(32), heun_loss(64)
    assert first / second == pytest.approx(16, rel=0.25) and second / third == pytest.approx(16, rel=0.15)
    assert third < 1e-9 and heun_loss(64, shift=0.1) > 1e-3


def test_loss_of_the_exact_map_of_a_point_is_the_denoising_loss_alone():
    """All paths of its ODE are straight, so Heun's steps are exact; the images are others."""
    rows = rows_of(torch.tensor([[80.0, 10.0, 2.0], [3.0, 1.0, 0.1], [0.5, 0.1, SIGMA_MIN]]), [1.0, 0.1, SIGMA_MIN])
    method = method_of(Exact(std=0.0), gaussian(std=0.0), denoising_weight=0.7)
    assert float(loss_of(method, rows)) < 1e-12
    level = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    weight = (level.square() + STD**2) / (level * STD).square()
    expected = (weight * (rows["image"] - MEAN).square().flatten(1).mean(1)).mean()
    found = loss_of(method, rows | {"level": level, "level_noise": rows["noise"].flip(0)})
    torch.testing.assert_close(found, 0.7 * expected, rtol=1e-6, atol=0)


def test_denoising_loss_is_that_of_the_teacher_for_the_exact_map():
    """Steps of length 0, whose x0 is the teacher's."""
    rows = rows_of(torch.tensor([[5.0, 2.0], [1.0, 0.5]]), [1.0, 0.1])
    level, noise = torch.tensor([0.4, 3.0], dtype=torch.float64), rows["noise"].flip(0)
    method = method_of(Exact(), gaussian(), denoising_weight=2.0)
    x0 = gaussian()(rows["image"] + per_sample(level, noise) * noise, level, rows["label"])
    weight = (level.square() + STD**2) / (level * STD).square()
    expected = (weight * (rows["image"] - x0).square().flatten(1).mean(1)).mean()
    found = loss_of(method, rows | {"level": level, "level_noise": noise}) - loss_of(method, rows)
    torch.testing.assert_close(found, 2 * expected)


class Linear(nn.Module):
    """x0 = factor x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, *, end: Tensor) -> Tensor:
        return self.factor * image


def test_gradient_passes_through_the_target_network_to_the_student():
    """The teacher is a point at 0, so that x_u = u/t x_t; all other steps are products of numbers."""
    t, u, s, ours, theirs = 8.0, 3.0, 1.0, 0.4, -0.2
    rows = rows_of(torch.tensor([[t, 5.0, u]]), [s])
    student, target = Linear(ours), Linear(theirs).requires_grad_(False)
    method = method_of(student, gaussian(std=0.0, mean=0.0), target)
    found = loss_of(method, rows)
    found.backward()
    upper = rows["image"] + t * rows["noise"]
    last = SIGMA_MIN / s
    to_image = last + (1 - last) * theirs
    x0 = to_image * (s / t + (1 - s / t) * ours) * upper
    error = x0 - to_image * (s / u + (1 - s / u) * theirs) * (u / t * upper)
    torch.testing.assert_close(found.detach(), error.square().mean())
    assert student.factor.grad is not None and target.factor.grad is None
    torch.testing.assert_close(student.factor.grad, (2 * error * to_image * (1 - s / t) * upper).mean())


class Jump(nn.Module):
    """The student of CTM whose step to the lowest level is the consistency map of a network."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, *, end: Tensor) -> Tensor:
        x0 = self.denoiser(image, sigma, label)
        ratio = per_sample(end / sigma, image)
        mapped = consistency(self.denoiser, image, x0, sigma, SIGMA_MIN)
        return (mapped - ratio * image) / (1 - ratio).clamp(min=1e-9)


def test_one_step_of_the_teacher_and_the_lowest_level_are_consistency_distillation():
    """Value and gradient."""
    torch.manual_seed(0)
    one = Denoiser(build({**NETWORK, "num_classes": 0}), sigma_data=STD).double()
    for parameter in one.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    other = copy.deepcopy(one)
    method = method_of(Jump(one), gaussian())
    rows = rows_of(torch.tensor([[9.0, 4.0], [1.0, 0.5], [0.3, 0.1]]), 3 * [SIGMA_MIN])
    found = loss_of(method, rows)
    section = {"name": "consistency", "levels": {"sigma_min": SIGMA_MIN}, "phases": [{"updates": 1}]}
    networks: Any = {"student": other, "teacher": gaussian()}
    known = Consistency(ConsistencySection.model_validate(section), networks, Facts(SHAPE, 0, STD), torch.device("cpu"))
    levels = {"sigma": rows["path"][:, 0], "lower_sigma": rows["path"][:, 1]}
    expected = loss_of(known, rows | levels)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    found.backward()
    expected.backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_levels_descend_from_t_over_u_to_s_and_reach_both_ends():
    method = method_of(None, batch_size=300, levels=6, solver_steps=3, calls=[10.0])
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    sigmas, random = method.sigmas().float(), torch.Generator().manual_seed(0)
    drawn = [method.draw(step, clock, random)["images"] for _ in range(200)]
    counts = torch.tensor([rows["path"].shape[1] - 1 for rows in drawn])
    shares = torch.bincount(counts, minlength=4) / len(counts)
    torch.testing.assert_close(shares, torch.tensor([0, 1, 2, 3]) / 6, rtol=0, atol=0.1)
    below = torch.cat([rows["end"][rows["path"][:, -1] == sigmas[2]] for rows in drawn])
    of_u = torch.bincount(torch.searchsorted(sigmas, below), minlength=3) / len(below)
    torch.testing.assert_close(of_u, torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    for rows in drawn:
        path, end = rows["path"], rows["end"]
        assert bool((path.diff() < 0).all()) and bool((end <= path[:, -1]).all())
        index = torch.searchsorted(sigmas, path)
        assert torch.equal(sigmas[index], path) and bool((index.diff() == -1).all())
        assert float(path[:, 0].max()) == pytest.approx(10.0) and float(path[:, -1].min()) == sigmas[0]
    assert float(sigmas[0]) == pytest.approx(SIGMA_MIN)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_levels_of_the_denoising_loss_are_a_mixture_of_the_log_normal_and_the_curve(share):
    """Their distribution function by that of both parts, at three levels."""
    method = method_of(None, batch_size=20_000, curve_share=share)
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    level = method.draw(step, clock, torch.Generator().manual_seed(0))["images"]["level"]
    root = lambda sigma: sigma ** (1 / 7)  # noqa: E731
    for sigma in (0.3, 5.0, 40.0):
        place = (root(80.0) - root(sigma)) / (root(80.0) - root(SIGMA_MIN))
        below = float(torch.special.ndtr((torch.tensor(sigma).log() + 1.2) / 1.2))
        expected = (1 - share) * below + share * (1 - min(place / 0.7, 1))
        assert float((level < sigma).float().mean()) == pytest.approx(expected, abs=0.015)  # four standard errors


def test_exact_student_draws_the_end_of_the_ode_in_any_number_of_calls():
    noise = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = MEAN + (80 * noise - MEAN) * STD / (STD**2 + 80.0**2) ** 0.5
    for calls in ([80.0], [80.0, 7.0, 0.5]):
        found = method_of(None, calls=calls).sampling().draw(Exact(), noise, torch.full((5,), -1))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_target_is_the_moving_average_of_the_student(decay):
    found = trainer(METHODS["ctm"] | {"target_decay": decay})
    before = weights(found.networks["target"])
    assert torch.equal(before, weights(found.networks["student"]))
    train(found, 0, 1)
    after = weights(found.networks["student"])
    assert not torch.equal(before, after)
    torch.testing.assert_close(weights(found.networks["target"]), decay * before + (1 - decay) * after)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_passes_are_two_of_the_teacher_for_each_step(weight):
    """Student with gradient, once more for the denoising loss; target three times, once with a gradient through it."""
    method = METHODS["ctm"] | {"solver_steps": 1, "denoising_weight": weight}
    (found,) = measured_steps(trainer(method), streams())
    assert found.parts["images"].passes == {"teacher": 2, "student": 6 if weight else 3, "target": 4}


def test_distillation_writes_a_student_that_draws_in_one_and_two_calls(teacher_file, tmp_path):
    method = {"name": "ctm", "levels": 6, "solver_steps": 2, "batch_size": 4, "calls": [10.0, 0.8]}
    section = {"method": method | {"phases": [{"updates": 3}]}, "schedule": {"warmup": 0}, "monitor": None}
    images = image_shards(tmp_path, {"kind": "digits", "split_seed": 0, "num_training": 16})
    folder = distil(tmp_path, section, teacher=teacher_file, images=images)
    one, two = (dmd.load(folder / NAMES[0], calls=calls)(num=3, label=4) for calls in (1, 2))
    assert one.shape == (3, 1, 8, 8) and bool(one.isfinite().all()) and not torch.allclose(one, two)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"calls": [10.0, 0.8], "sigma_min": 0.8}, "sigma_min: 0.8 is not below the last of calls, 0.8"),
        ({"levels": 5, "solver_steps": 5}, "solver_steps: 5, but 5 levels have 4 steps between them"),
    ],
)
def test_levels_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate({"name": "ctm", "phases": [{"updates": 1}], **keys})


def test_calls_above_the_levels_of_the_teacher_are_refused():
    config = Section.model_validate({"name": "ctm", "phases": [{"updates": 1}]})
    networks: Any = {}
    with pytest.raises(ValueError, match="distill.method.calls: 80 is above 50, the highest noise level"):
        Ctm(config, networks, Facts(SHAPE, 0, STD, trained=(0.002, 50.0)), torch.device("cpu"))
