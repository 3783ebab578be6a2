"""Moment matching: the posterior, half of DMD's gradient, the fake denoiser's target, levels of each call, refusals."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.methods.moment_matching import MomentMatching as Section
from dmd.methods.base import Facts
from dmd.methods.moment_matching import MomentMatching
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.models.student_calls import Calls, ancestral
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.methods.test_every_method import METHODS, steps, streams, trainer
from tests.quadrature import NOISE, PRODUCT, SIGMA, STUDENT_NOISE, TEACHER, Affine, exact
from tests.trainings import WHOLE

LISTED = {"calls": 3, "times": {"kind": "listed", "sigmas": [80.0, 5.0, 0.8]}}


def method_of(**keys: Any) -> MomentMatching:
    found = trainer(METHODS["moment-matching"] | LISTED | keys).method
    assert isinstance(found, MomentMatching)
    return found


def test_posterior_given_the_image_is_the_image_with_noise_of_the_lower_level():
    image, first, second = torch.randn(3, 5, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    found = ancestral(image + 5.0 * first, image, 5.0, 2.0, second)
    torch.testing.assert_close(found, image + 2.0 * (0.4 * first + (1 - 0.4**2) ** 0.5 * second))
    sigma, lower = torch.full((5,), 5.0).double(), torch.full((5,), 2.0).double()
    assert torch.equal(found, ancestral(image + 5.0 * first, image, sigma, lower, second))


def test_ancestral_calls_draw_a_gaussian_whose_variance_tends_to_the_exact_one():
    """By the exact denoiser: x0 is its mean, so that each step loses variance of the order of the squared step."""
    mean, std = 0.3, 0.5
    gaussian = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), mean), torch.tensor([std]), torch.tensor([1.0]))
    lost = []
    for num in (10, 20, 40):
        sigmas = torch.logspace(1.9, -2, num).double().tolist()
        variance = sigmas[0] ** 2  # of the image at each level, whose step is affine in it and in the fresh noise
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            ends = torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1)
            x0 = gaussian(ends, torch.full((2,), sigma).double(), torch.full((2,), -1))
            moved = ancestral(ends, x0, sigma, after, torch.zeros(2, 1, 1, 1).double()).flatten()
            added = float(ancestral(ends, x0, sigma, after, torch.ones(2, 1, 1, 1).double()).flatten()[0] - moved[0])
            variance = float(moved[1] - moved[0]) ** 2 * variance + added**2
        lost.append(std**2 - variance)
    assert lost[0] > lost[1] > lost[2] > 0 and lost[1] / lost[2] == pytest.approx(2, abs=0.3)


class Fixed(nn.Module):
    """A denoiser whose output is a parameter."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return self.output

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 + sigma."""
        return 1 + sigma


class Halfway(nn.Module):
    """The fake denoiser that knows the student, halfway to the teacher."""

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return (exact()(image, sigma, label) + TEACHER(image, sigma, label)) / 2


def numbers(student: nn.Module, fake: nn.Module) -> MomentMatching:
    """With one call, at a level so high that the posterior does not depend on its input."""
    keys: dict[str, Any] = {"calls": 1, "times": {"kind": "listed", "sigmas": [1e5]}, "weighting": "sigma2/alpha"}
    config = Section.model_validate({"name": "moment-matching", "phases": [{"updates": 1}]} | keys)
    networks: Any = {"teacher": TEACHER, "student": student, "fake": fake}
    return MomentMatching(config, networks, Facts((1, 1, 1), 0, 0.5), torch.device("cpu"))


def at_sigma(method: MomentMatching, *, noise: Tensor, posterior_noise: Tensor) -> dict[str, Tensor]:
    """Rows of the student's first call whose level s is SIGMA."""
    low, high, level = (float(each) ** (1 / 7) for each in (method.ends[0], method.sigmas[0], SIGMA))
    num = len(noise)
    place, call = torch.full((num,), (level - low) / (high - low)).double(), torch.zeros(num, dtype=torch.int64)
    rows = {"image": torch.zeros_like(noise), "noise": noise, "posterior_noise": posterior_noise}
    return rows | {"label": torch.full((num,), -1), "place": place, "call": call}


def test_one_call_has_half_of_dmds_gradient():
    student = Affine()
    method = numbers(student, Halfway())
    clock = plan(method.config)[0].clock(0)
    step, total = method.steps(method.config, clock)[0], torch.zeros(())
    for index in PRODUCT.argsort(descending=True)[:1500]:  # the other nodes weigh less than 1e-7 together
        rows = at_sigma(method, noise=STUDENT_NOISE[index, None], posterior_noise=NOISE[index, None])
        total = total + PRODUCT[index] * method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))
    total.backward()
    expected = SIGMA**2 / 2 * torch.tensor((0.03556, -0.41666)).double()
    torch.testing.assert_close(student.theta.grad, expected, rtol=0, atol=2e-5)


def test_fake_denoiser_learns_the_mean_of_image_and_teacher():
    generated, output = torch.randn(2, 6, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    fake = Fixed(output)
    method = numbers(Affine(), fake)
    clock = plan(method.config)[0].clock(0)
    step = method.steps(method.config, clock)[1]
    noise = torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    rows = at_sigma(method, noise=noise, posterior_noise=noise) | {"generated": generated}
    method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE)).backward()
    sigma = torch.full((6,), SIGMA)
    state = ancestral(1e5 * noise, generated, torch.full((6,), 1e5), sigma, noise)
    real = TEACHER(state, sigma, rows["label"])
    point = output.clone().requires_grad_()
    (2 * denoising_loss(point, (generated + real) / 2, weight=1 + sigma)).backward()
    torch.testing.assert_close(fake.output.grad, point.grad)


def test_levels_of_a_call_lie_between_its_own_and_the_next():
    method = method_of()
    for call, (low, high) in enumerate(((5.0, 80.0), (0.8, 5.0), (0.002, 0.8))):
        calls, place = torch.full((3,), call), torch.tensor([0.0, 0.5, 1.0]).double()
        middle = ((low ** (1 / 7) + high ** (1 / 7)) / 2) ** 7
        torch.testing.assert_close(method.levels(calls, place), torch.tensor([low, middle, high]))


def test_images_are_drawn_again_at_another_level_of_their_call():
    found = trainer(METHODS["moment-matching"] | LISTED | {"batch_size": 64})
    prepared = steps(found)[1]
    names = [sorted(rows[step.parts[0].name].keys() - {"image", "label"}) for step, rows in prepared]
    assert names[0] == ["call", "noise", "place", "posterior_noise"] and names[1] == ["place", "posterior_noise"]
    first, second = (rows[step.parts[0].name]["place"] for step, rows in prepared[:2])
    assert not torch.equal(first, second) and prepared[0][1]["images"]["call"].unique().tolist() == [0, 1, 2]


def test_passes_of_an_update_are_those_of_the_algorithm():
    """G 3, teacher 1 and fake 1; then fake 3 and teacher 1 on the same images."""
    found = measured_steps(trainer(METHODS["moment-matching"]), streams())
    student, carried = (next(iter(step.parts.values())).passes for step in found[:2])
    assert student == {"teacher": 1, "student": 3, "fake": 1} and carried == {"teacher": 1, "fake": 3}


def test_student_takes_ancestral_steps_and_all_its_calls():
    method = method_of()
    assert method.sampling() == Calls((80.0, 5.0, 0.8), between="ancestral") and method.sampling().num_fresh == 2
    assert set(method.config.calls_kept()) == {3}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"calls": 2}, "times.sigmas: 3 noise levels for calls 2"),
        ({"times": {"kind": "lcm"}}, "kind"),
        ({"phases": [{"updates": 1, "fake_updates": 0}]}, "greater than or equal to 1"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate(METHODS["moment-matching"] | LISTED | keys)


def test_lowest_level_above_the_last_call_is_refused():
    with pytest.raises(ValueError, match="sigma_min: 0.9 is not below the last call's level, 0.8"):
        method_of(sigma_min=0.9)
