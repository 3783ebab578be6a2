"""Diff-Instruct: its gradient is that of the KL divergence, and its student learns a Gaussian."""

import pytest
import torch

from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.diff_instruct import DiffInstruct
from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import assemble, plan
from tests.methods.test_every_method import FACTS, denoiser, train
from tests.quadrature import NOISE, PRODUCT, SIGMA, STUDENT_NOISE, TEACHER, Affine, exact
from tests.trainings import WHOLE


def section(**method) -> Distill:
    return Distill.model_validate(
        {
            "method": {"name": "diff-instruct", "batch_size": 64, "phases": [{"updates": 250}], **method},
            "optimisers": {role: {"learning_rate": 4e-3} for role in ("student", "fake")},
            "schedule": {"warmup": 0, "decay": "linear"},
            "ema_decay": 0.9,
        }
    )


def test_loss_of_the_student_has_the_gradient_of_the_kl_divergence_times_sigma_squared():
    config, student = section().method, Affine()
    networks = {"teacher": TEACHER, "student": student, "fake": exact()}
    method = DiffInstruct(config, networks, Facts((1, 1, 1), 0, 0.5), torch.device("cpu"))
    clock = plan(config)[0].clock(0)
    step, sigma = method.steps(config, clock)[-1], torch.full((1,), SIGMA).double()
    total = torch.zeros(())
    for index in PRODUCT.argsort(descending=True)[:1500]:  # the other nodes weigh less than 1e-7 together
        rows = {"noise": STUDENT_NOISE[index, None], "level_noise": NOISE[index, None], "sigma": sigma}
        rows |= {"label": torch.full((1,), -1)}
        total = total + PRODUCT[index] * method.loss(step, step.parts[0], rows, clock, UpdateLog(WHOLE))
    total.backward()
    expected = SIGMA**2 * torch.tensor((0.03556, -0.41666)).double()
    torch.testing.assert_close(student.theta.grad, expected, rtol=0, atol=1e-5)


def test_student_learns_a_gaussian_from_its_exact_teacher():
    mean, std = torch.tensor([0.5, -0.4])[None, :, None, None], 0.3
    teacher = GaussianMixtureDenoiser(mean, torch.tensor([std]), torch.tensor([1.0]))
    found = assemble(section(), {"teacher": teacher, "student": denoiser(0), "fake": denoiser(0)}, FACTS, distances={},
                     split=WHOLE)  # fmt: skip
    logs = train(found, 0, 250)
    random = torch.Generator().manual_seed(0)
    noise, label = torch.randn(2000, 2, 1, 1, generator=random), torch.randint(3, (2000,), generator=random)
    with torch.no_grad():
        image = found.method.generate({"noise": noise, "label": label})
    torch.testing.assert_close(image.mean(0), mean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(image.std(0), torch.full((2, 1, 1), std), rtol=0.25, atol=0)
    assert set(logs[0]) > {"loss/matching", "loss/fake", "matching/gap0", "matching/gap9"}


def test_section_asks_for_noise_alone_and_brings_its_optimisers():
    distill = Distill.model_validate(
        {"method": {"name": "diff-instruct", "phases": [{"updates": 1}]}, "optimisers": {}}
    )
    assert distill.method.reads() == frozenset() and distill.method.trained == ("student", "fake")
    for role in distill.method.trained:
        optimiser = distill.optimisers[role]
        assert (optimiser.learning_rate, optimiser.betas, optimiser.weight_decay) == (1e-5, (0.0, 0.999), 0.0)


@pytest.mark.parametrize("mean", [-1.2, 0.5])
def test_bins_of_the_log_are_equally_likely(mean):
    config = section(sigma_log_mean=mean).method
    method = DiffInstruct(config, {}, FACTS, torch.device("cpu"))  # type: ignore[arg-type]
    clock, random = plan(config)[0].clock(0), torch.Generator().manual_seed(0)
    rows = [method.draw(method.steps(config, clock)[0], clock, random)["noise"]["sigma"] for _ in range(50)]
    counts = torch.bincount(method._bins(torch.cat(rows)), minlength=10) / (50 * 64)
    torch.testing.assert_close(counts, torch.full((10,), 0.1), rtol=0, atol=0.02)
