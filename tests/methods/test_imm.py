"""IMM: the discrepancy of sets, weights and levels, the map of a Gaussian, its file, refusals."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import dmd
from dmd.config.methods.imm import Imm as Section
from dmd.methods.base import Facts, Part
from dmd.methods.imm import Imm, discrepancy, laplace, level_weight
from dmd.models.denoiser import Denoiser, per_sample
from dmd.models.networks import build
from dmd.train.data import ImageStream
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.image_shards import image_shards
from tests.methods.test_every_method import METHODS, NETWORK, streams, trainer
from tests.trainings import NAMES, WHOLE, distil

MEAN, STD = 0.3, 0.5


def sets(num: int) -> Tensor:
    return torch.randn(3, num, 2, 2, 2, generator=torch.Generator().manual_seed(num), dtype=torch.float64)


def test_discrepancy_of_single_images_by_the_negative_squared_distance_is_a_consistency_loss():
    ours, theirs = sets(1), sets(1).flip(0)
    expected = 2 * (ours - theirs).square().flatten(1).sum(1)
    torch.testing.assert_close(discrepancy(ours, theirs, torch.neg), expected)


def test_discrepancy_of_equal_sets_is_0_in_any_order_and_that_of_others_is_not():
    kernel = lambda square: laplace(square, torch.tensor(0.3))  # noqa: E731
    ours = sets(4)
    torch.testing.assert_close(discrepancy(ours, ours.flip(1), kernel), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert bool((discrepancy(ours, ours + 0.5, kernel) > 1e-3).all())


def test_gradient_of_the_discrepancy_is_finite_where_images_are_equal():
    ours = sets(3).requires_grad_()
    discrepancy(ours, ours.detach(), lambda square: laplace(square, torch.tensor(0.3))).sum().backward()
    assert ours.grad is not None and bool(ours.grad.isfinite().all())


def test_weight_of_a_level_has_the_slope_of_the_log_snr_in_flow_time():
    sigma, step = torch.tensor([0.01, 0.5, 1.0, 40.0]).double(), 1e-6
    time = sigma / (1 + sigma)
    ratio = lambda u: 2 * ((1 - u) / u).log()  # noqa: E731
    slope = (ratio(time - step) - ratio(time + step)) / (2 * step)
    snr_part = (1 / (1 + (ratio(time) - 4).exp())) / 2
    expected = snr_part * slope * (1 - time) ** 2 / ((1 - time) ** 2 + time**2)
    torch.testing.assert_close(level_weight(sigma, a=2.0, b=4.0), expected, rtol=1e-4, atol=0)


def method_of(student: Any, **keys: Any) -> Imm:
    config = Section.model_validate({"name": "imm", "calls": [10.0], "phases": [{"updates": 1}], **keys})
    networks: Any = {"student": student}
    return Imm(config, networks, Facts((1, 1, 1), 0, STD), torch.device("cpu"))


def test_levels_descend_and_lie_within_their_range():
    method = method_of(None, batch_size=400, k=4)
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    rows = method.draw(step, clock, torch.Generator().manual_seed(0))["images"]
    sigma, lower, end = rows["sigma"], rows["lower"], rows["end"]
    assert rows["noise"].shape == (400, 4, 1, 1, 1) and 0.003 <= float(end.min()) and 9 < float(sigma.max()) <= 10.0
    assert bool((end <= lower).all()) and bool((lower <= sigma).all())
    above = lower > end
    torch.testing.assert_close((sigma - lower)[above], torch.full((int(above.sum()),), (10 - 0.003) / 16))
    time = sigma / (STD + sigma)
    assert float(time.mean()) == pytest.approx((0.003 / (STD + 0.003) + 10 / (STD + 10)) / 2, abs=0.04)


class Exact(Denoiser):
    """The student whose steps follow the ODE of a Gaussian, with an error that grows with the level."""

    def __init__(self, shift: float) -> None:
        super().__init__(build({**NETWORK, "channels": 1, "second_time": True}), sigma_data=STD)
        self.shift = shift

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor, *, level: Any = None, end: Any = None) -> Tensor:
        ratio = per_sample(end / sigma, image)
        spread = per_sample(((STD**2 + end.square()) / (STD**2 + sigma.square())).sqrt(), image)
        return (MEAN + (image - MEAN) * spread - ratio * image) / (1 - ratio) + self.shift * per_sample(
            sigma.log(), image
        )


def test_student_that_follows_the_ode_of_a_gaussian_has_far_less_loss_than_one_that_drifts():
    """Only the number of images in a group leaves a rest."""
    random, losses = torch.Generator().manual_seed(0), []
    image = MEAN + STD * torch.randn(2, 400, 1, 1, 1, generator=random)
    noise = torch.randn(image.shape, generator=random)
    levels = {"sigma": torch.tensor([5.0, 1.0]), "lower": torch.tensor([2.0, 0.4]), "end": torch.tensor([0.5, 0.1])}
    rows = {"image": image, "noise": noise, "label": torch.full((2, 400), -1), **levels}
    for shift in (0.0, 0.5):
        method = method_of(Exact(shift), particles=400)
        clock = plan(method.config)[0].clock(0)
        (step,) = method.steps(method.config, clock)
        losses.append(float(method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))))
    assert 0 <= losses[0] < 0.1 * losses[1]


def test_loss_is_the_weighted_mean_over_pairs_of_kernels_of_images_of_several_values():
    random = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 2, 3, 2, 2, 2, generator=random)  # two groups of three
    sigma, lower, end = torch.tensor([5.0, 1.0]), torch.tensor([2.0, 0.4]), torch.tensor([0.5, 0.1])
    config = Section.model_validate({"name": "imm", "calls": [10.0], "particles": 3, "phases": [{"updates": 1}]})
    networks: Any = {"student": Exact(0.5)}
    method = Imm(config, networks, Facts((2, 2, 2), 0, STD), torch.device("cpu"))
    label = torch.full((2, 3), -1)
    rows = {"image": image, "noise": noise, "label": label, "sigma": sigma, "lower": lower, "end": end}
    clock = plan(config)[0].clock(0)
    (step,) = method.steps(config, clock)
    found = method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))
    ours, theirs = (method.step_to(end, image, noise, level, label) for level in (sigma, lower))
    expected = 0.0
    for group, (t, s) in enumerate(zip(sigma.tolist(), end.tolist(), strict=True)):
        width = (1 - s / t) * t * STD / (t**2 + STD**2) ** 0.5 * 8
        kernel = lambda one, other: float((-(one - other).norm().clamp(min=1e-8) / width).exp())  # noqa: E731, B023
        pairs = [
            kernel(ours[group, i], ours[group, j])
            + kernel(theirs[group, i], theirs[group, j])
            - kernel(ours[group, i], theirs[group, j])
            - kernel(theirs[group, i], ours[group, j])
            for i in range(3)
            for j in range(3)
        ]
        weight = float(level_weight(torch.tensor(t / STD), a=config.a, b=config.b))
        expected += weight * sum(pairs) / len(pairs) / 2
    assert float(found) == pytest.approx(expected, rel=1e-4)


class Images:
    labels, num_classes = torch.arange(10), 10

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Tensor) -> Tensor:
        return indices.float()[:, None, None, None]


def test_groups_are_the_images_that_the_stream_gives_one_by_one():
    stream = ImageStream(Images())
    single, grouped = (
        stream.rows(Part("images", size, "images", group=group), 0, slice(0, size), torch.Generator().manual_seed(0))
        for size, group in ((12, 1), (4, 3))
    )
    assert torch.equal(grouped["image"].flatten(0, 1), single["image"])
    assert torch.equal(grouped["label"].flatten(), single["label"])
    part = Part("images", 4, "images", group=3)
    mine = stream.rows(part, 0, slice(1, 3), torch.Generator().manual_seed(0))
    assert torch.equal(mine["image"], grouped["image"][1:3]) and mine["label"].shape == (2, 3)


def test_passes_of_a_row_are_those_of_a_group():
    """Target 1, student 3, for each of two images."""
    (found,) = measured_steps(trainer(METHODS["imm"]), streams())
    assert found.parts["images"].passes == {"student": 2 * 4}


def test_distillation_writes_a_student_that_draws_in_one_and_two_calls(teacher_file, tmp_path):
    method = {"name": "imm", "batch_size": 2, "calls": [10.0, 0.8], "phases": [{"updates": 3}]}
    section = {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}}
    images = image_shards(tmp_path, {"kind": "digits", "split_seed": 0, "num_training": 16})
    folder = distil(tmp_path, section | {"monitor": None}, teacher=teacher_file, images=images)
    one, two = (dmd.load(folder / NAMES[0], calls=calls)(num=3, label=4) for calls in (1, 2))
    assert one.shape == (3, 1, 8, 8) and bool(one.isfinite().all()) and not torch.allclose(one, two)


def test_lowest_level_above_the_last_call_is_refused():
    with pytest.raises(ValidationError, match="sigma_min: 1 is not below the last of calls, 0.8"):
        Section.model_validate({"name": "imm", "calls": [10.0, 0.8], "sigma_min": 1.0, "phases": [{"updates": 1}]})
