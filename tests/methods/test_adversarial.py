"""The methods gan and ufogen: losses of known logits, penalty every so often, noise levels of student and judge."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.methods.base import Rows
from dmd.sampling.noise import karras_sigmas
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import Trainer, plan
from tests.methods.test_every_method import steps, trainer
from tests.trainings import WHOLE

METHODS: dict[str, dict[str, Any]] = {
    "gan": {"name": "gan", "batch_size": 8, "phases": [{"updates": 40}]},
    "ufogen": {"name": "ufogen", "batch_size": 8, "reconstruction_weight": 0.0, "phases": [{"updates": 40}]},
}


class Head(nn.Module):
    """Logits that are the first feature times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, features: Tensor) -> Tensor:
        return self.factor * features.flatten(1)[:, 0]


class Linear(nn.Module):
    """A denoiser whose features are its inputs, remembered with their noise levels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.weight = nn.Parameter(torch.ones(()))

    def bottleneck(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        self.seen.append((image.detach(), sigma))
        return self.weight * image


def judged(name: str, factor: float, **keys: Any) -> tuple[Trainer, list[float], Linear]:
    """The losses of each step of the first update, with logits of factor times the first pixel."""
    found, judge = trainer({**METHODS[name], **keys}), Linear()
    networks = {"student": found.networks["student"], "discriminator": judge, "head": Head(factor)}
    found.method.networks = networks  # type: ignore[assignment]
    clock, prepared = steps(found)
    rows: dict[str, Rows] = {}
    losses = []
    for step, drawn in prepared:
        loss = 0.0
        for part in step.parts:
            rows[part.name] = {**rows.get(part.carries or "", {}), **drawn[part.name]}
            loss += float(found.method.loss(step, part, rows[part.name], clock, UpdateLog(WHOLE)).detach())
        losses.append(loss)
    return found, losses, judge


@pytest.mark.parametrize("name", METHODS)
def test_losses_of_a_judge_that_knows_nothing(name):
    _, (student, discriminator), _ = judged(name, 0.0, r1=0.0)
    assert student == pytest.approx(math.log(2)) and discriminator == pytest.approx(2 * math.log(2))


def test_penalty_of_a_linear_judge_is_half_its_squared_slope_and_counts_as_often_as_it_is_left_out():
    _, (_, without), _ = judged("gan", 1.5, r1=0.0)
    _, (_, first), _ = judged("gan", 1.5, r1=0.4, r1_every=4)
    assert first - without == pytest.approx(4 * 0.4 / 2 * 1.5**2, rel=1e-5)
    found = trainer({**METHODS["gan"], "r1": 0.4, "r1_every": 4})
    phases, _ = plan(found.training.method)
    step, drawn = steps(found)[1][1]
    losses = []
    for update in range(9):
        rows, log = dict(drawn["images"]), UpdateLog(WHOLE)
        losses.append(float(found.method.loss(step, step.parts[1], rows, phases.clock(update), log).detach()))
    assert losses[0] == losses[4] == losses[8] > losses[1]
    assert losses[1] == losses[2] == losses[3] == losses[5]


def test_ufogen_judges_real_and_generated_images_at_the_next_lower_level_with_noise_of_their_own():
    found, _, judge = judged("ufogen", 1.0, levels=3, sigma_max=10.0)
    grid = karras_sigmas(4, sigma_min=0.002, sigma_max=10.0, rho=7.0).float()
    torch.testing.assert_close(found.method.sigmas, grid)  # type: ignore[attr-defined]
    assert found.method.sampling().sigmas == (10.0,)  # type: ignore[union-attr]
    (one, low), (_, again), (real, of_real) = judge.seen
    _, prepared = steps(found)
    rows = {**prepared[0][1]["images"], **prepared[1][1]["carried"]}
    level = rows["level"]
    assert torch.equal(low, again) and torch.equal(low, of_real) and torch.equal(low, found.method.sigmas[level + 1])
    torch.testing.assert_close(real, rows["image"] + low[:, None, None, None] * rows["real_noise"])
    sigma = found.method.sigmas[level]
    generated = found.networks["student"](
        rows["image"] + sigma[:, None, None, None] * rows["noise"], sigma, rows["label"]
    )
    noise = prepared[0][1]["images"]["generated_noise"]
    torch.testing.assert_close(one, generated.detach() + low[:, None, None, None] * noise)


def test_ufogen_of_a_large_weight_predicts_the_noise():
    found, (loss, _), _ = judged("ufogen", 0.0, reconstruction_weight=1e4)
    _, prepared = steps(found)
    rows = prepared[0][1]["images"]
    sigma = found.method.sigmas[rows["level"]]  # type: ignore[attr-defined]
    noised = rows["image"] + sigma[:, None, None, None] * rows["noise"]
    x0 = found.networks["student"](noised, sigma, rows["label"]).detach()
    error = ((x0 - rows["image"]) / sigma[:, None, None, None]).square().mean()  # of the noise (noised - x0) / sigma
    assert loss == pytest.approx(1e4 * float(error) + math.log(2), rel=1e-5)


WITHOUT_WEIGHT = {key: value for key, value in METHODS["ufogen"].items() if key != "reconstruction_weight"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (METHODS["gan"] | {"r1": 0.0, "r1_every": 4}, "r1_every: 4, but r1 is 0"),
        (METHODS["ufogen"] | {"sigma_min": 90.0}, "sigma_max 80 is not above sigma_min 90"),
        (WITHOUT_WEIGHT, "reconstruction_weight"),
    ],
)
def test_section_refuses_what_contradicts_itself(method, message):
    with pytest.raises(ValidationError, match=message):
        trainer(method)
