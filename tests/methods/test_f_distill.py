"""f-distill: the gradient of each divergence in one dimension, the ratio's means, the reverse KL as DMD's."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dmd.methods.base import Rows, Step
from dmd.methods.f_distill import FDistill
from dmd.methods.parts.divergences import DIVERGENCES
from dmd.methods.parts.matching import matching_gradient
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import plan
from tests.methods.test_every_method import steps, trainer
from tests.quadrature import NOISE, PRODUCT, SIGMA, density_ratio, exact, parameters, world
from tests.trainings import WHOLE


@pytest.mark.parametrize(
    ("divergence", "factor", "expected"),
    [
        ("reverse-kl", 1.0, (0.03556, -0.41666)),
        ("forward-kl", 1.0, (0.17329, -0.72770)),
        ("jensen-shannon", 1.0, (0.03213, -0.23899)),
        ("squared-hellinger", 0.25, (0.02019, -0.12944)),
    ],
)
def test_matching_gradient_times_the_weight_of_the_exact_ratio_is_that_of_the_divergence(divergence, factor, expected):
    image, real, fake = world(theta := parameters(), exact())
    levels = {"alpha": torch.ones(len(image)), "sigma": torch.full((len(image),), SIGMA)}
    gradient, _ = matching_gradient(image.detach(), real, fake, **levels, weighting="sigma2/alpha")
    ratio = density_ratio(image.detach() + SIGMA * NOISE)
    weights = factor * DIVERGENCES[divergence].weight(ratio) / SIGMA**2
    (found,) = torch.autograd.grad((PRODUCT * ((weights * gradient).detach() * image).flatten()).sum(), theta)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=2e-5)


def test_reverse_kl_is_dmd2_with_its_head_at_the_levels_of_matching():
    """The same networks, rows and levels leave the same gradients in both."""
    gan = {"student_weight": 0.3, "fake_weight": 0.2}
    phases = [{"updates": 1, "fake_updates": 1}]
    left = []
    for name in ("f-distill", "dmd2"):
        more = {"divergence": "reverse-kl"} if name == "f-distill" else {}
        found = trainer({"name": name, "adversarial": gan, "batch_size": 8, "phases": phases, **more})
        clock, prepared = steps(found)
        random = torch.Generator().manual_seed(7)
        rows: dict[str, Rows] = {}
        gradients = {}
        for step, drawn in prepared:
            found.networks.train_only(step.trains)
            for part in step.parts:
                level, noise = torch.randint(20, 981, (8,), generator=random), torch.randn(8, 2, 1, 1, generator=random)
                levels = {"level": level, "level_noise": noise, "gan_level": level, "gan_noise": noise}
                rows[part.name] = {**rows.get(part.carries or "", {}), **drawn[part.name], **levels}
                found.method.loss(step, part, rows[part.name], clock, UpdateLog(WHOLE)).backward()
            for role in step.trains:
                of_role = [each.grad.flatten() for each in found.networks.weights(role).parameters()]
                gradients[role, len(gradients)] = torch.cat(of_role)
        left.append(gradients)
    assert left[0].keys() == left[1].keys()
    for key, values in left[0].items():
        torch.testing.assert_close(values, left[1][key], rtol=1e-5, atol=1e-8)
        assert values.abs().max() > 0


def method_of(**keys: Any) -> FDistill:
    found = trainer({"name": "f-distill", "batch_size": 8, "phases": [{"updates": 4, "fake_updates": 1}], **keys})
    assert isinstance(found.method, FDistill)
    return found.method


def test_means_of_ratio_and_weight_are_those_of_earlier_updates():
    method, log = method_of(divergence="forward-kl", ratio_decay=0.25), UpdateLog(WHOLE)
    first, last = float(method.table.sigmas[0]), float(method.table.sigmas[-1])
    sigma = torch.tensor([first, first + 0.09 * (last - first), last])  # two in the lowest range, one in the highest
    logits = torch.tensor([0.5, -20.0, 12.0])
    ratio = torch.tensor([math.exp(0.5), 0.1, 20.0])  # clamped
    torch.testing.assert_close(method._weights(logits, sigma, log), ratio)  # all means are 1 at first
    student, _ = steps_of(method)
    method.after(student, plan(method.config)[0].clock(0), log)
    means = torch.ones(10)
    means[0] = 0.25 + 0.75 * ratio[:2].mean()
    means[9] = 0.25 + 0.75 * 20
    torch.testing.assert_close(method.buffers["ratio"], means)
    torch.testing.assert_close(method.buffers["weight"], ratio.mean())
    expected = ratio / means[[0, 0, 9]] / ratio.mean()
    torch.testing.assert_close(method._weights(logits, sigma, UpdateLog(WHOLE)), expected)


def steps_of(method: FDistill) -> tuple[Step, ...]:
    return method.steps(method.config, plan(method.config)[0].clock(0))


def test_head_that_learns_nothing_is_refused():
    with pytest.raises(ValidationError, match="adversarial.fake_weight: 0, but the head that gives the density ratio"):
        method_of(adversarial={"fake_weight": 0.0, "student_weight": 0.0})
