"""The noise table of a distillation: EDM's, or the teacher's own."""

import pytest
import torch

from dmd.config.methods import Dmd, KarrasLevels, TeacherLevels
from dmd.methods.parts.level_table import noise_levels
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from dmd.sampling.noise import training_sigmas

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 8, "layers": 1, "num_classes": 0}
SQUARES = torch.linspace(0.99, 0.01, 50, dtype=torch.float64).tolist()
DISCRETE = {"kind": "discrete", "alphas_cumprod": SQUARES, "prediction": "epsilon"}


def test_karras_levels_have_alpha_one_and_are_those_of_a_section_that_names_no_kind():
    grid = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0}
    for kind in ({}, {"kind": "karras"}):
        section = Dmd.model_validate({"name": "dmd", "levels": kind | grid | {"count": 990}})
        alpha, sigma = noise_levels(section.levels, None)
        assert torch.equal(sigma, training_sigmas(990, **grid)) and torch.equal(alpha, torch.ones(990))
    _, sigma = noise_levels(KarrasLevels(), None)
    assert torch.equal(sigma, training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0))


def test_levels_of_a_teacher_are_its_own_table():
    teacher = Denoiser(build(MLP), sigma_data=1.0, preconditioning=DISCRETE)
    alpha, sigma = noise_levels(TeacherLevels(kind="teacher", min_index=1, max_index=49), teacher)
    squares = torch.tensor(SQUARES)
    torch.testing.assert_close(alpha, squares.sqrt())
    torch.testing.assert_close(sigma, ((1 - squares) / squares).sqrt())
    assert alpha.dtype == sigma.dtype == torch.float32


def test_levels_of_a_teacher_without_them_are_refused():
    levels = TeacherLevels(kind="teacher", min_index=1, max_index=49)
    mixture = GaussianMixtureDenoiser(torch.zeros(1, 2, 1, 1), torch.ones(1), torch.ones(1))
    for teacher in (mixture, Denoiser(build(MLP), sigma_data=0.5)):
        with pytest.raises(
            ValueError, match="distill.method.levels.kind: teacher, but this teacher has no table of noise levels"
        ):
            noise_levels(levels, teacher)
    discrete = Denoiser(build(MLP), sigma_data=1.0, preconditioning=DISCRETE)
    with pytest.raises(ValueError, match="max_index: 50 is beyond the 50 levels of the teacher"):
        noise_levels(levels.model_copy(update={"max_index": 50}), discrete)
