"""The noise table of a distillation: EDM's, or the teacher's own."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from dmd.config.methods import Method, consistency, progressive, sid
from dmd.config.methods.dmd import Dmd
from dmd.config.methods.levels import KarrasLevels, TeacherLevels
from dmd.methods.base import Facts
from dmd.methods.consistency import Consistency
from dmd.methods.parts.level_table import noise_levels
from dmd.methods.progressive import Progressive
from dmd.methods.sid import Sid
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from dmd.sampling.noise import training_sigmas

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 8, "layers": 1, "num_classes": 0}
SQUARES = torch.linspace(0.99, 0.01, 50, dtype=torch.float64).tolist()
DISCRETE = {"kind": "discrete", "alphas_cumprod": SQUARES, "prediction": "epsilon"}
FACTS = Facts((2, 1, 1), 0, 0.5)


def test_karras_levels_have_alpha_one_and_are_those_of_a_section_that_names_no_kind():
    grid = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0}
    for kind in ({}, {"kind": "karras"}):
        section = Dmd.model_validate({"name": "dmd", "levels": kind | grid | {"count": 990}})
        table = noise_levels(section.levels, None, FACTS)
        assert torch.equal(table.sigmas, training_sigmas(990, **grid)) and torch.equal(table.alphas, torch.ones(990))
    assert torch.equal(
        noise_levels(KarrasLevels(), None, FACTS).sigmas,
        training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0),
    )


def test_levels_of_a_teacher_are_its_own_table():
    teacher = Denoiser(build(MLP), sigma_data=1.0, preconditioning=DISCRETE)
    table = noise_levels(TeacherLevels(kind="teacher", min_index=1, max_index=49), teacher, FACTS)
    alpha, sigma = table.alphas, table.sigmas
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
            noise_levels(levels, teacher, FACTS)
    discrete = Denoiser(build(MLP), sigma_data=1.0, preconditioning=DISCRETE)
    with pytest.raises(ValueError, match="max_index: 50 is beyond the 50 levels of the teacher"):
        noise_levels(levels.model_copy(update={"max_index": 50}), discrete, FACTS)


@pytest.mark.parametrize(
    ("trained", "expected"),
    [((0.0, math.inf), (0.002, 80.0)), ((0.02, 100.0), (0.02, 80.0)), ((0.03, 14.6), (0.03, 14.6))],
)
def test_default_levels_are_those_of_edm_within_the_range_of_the_teacher(trained, expected):
    facts = replace(FACTS, trained=trained, sigma_max=min(trained[1], 80.0))
    sigma = noise_levels(KarrasLevels(), None, facts).sigmas
    assert (sigma[0].item(), sigma[-1].item()) == pytest.approx(expected)
    sid, consistency, progressive = built(facts, {"last": 0.1})
    assert sid.levels(torch.zeros(1)).item() == pytest.approx(expected[0])
    assert consistency.sigmas(5)[[0, -1]].tolist() == list(expected)
    assert progressive.sigmas[[0, -2]].tolist() == pytest.approx(expected[::-1])


def built(facts: Facts, curve: dict[str, float], **levels: float | None) -> tuple[Sid, Consistency, Progressive]:
    phases, levels = [{"updates": 1}], {"sigma_max": None} | levels
    cpu, rounds = torch.device("cpu"), [{"updates": 1, "steps": 4}]
    return (
        Sid(sid.Sid.model_validate({"name": "sid", "levels": curve, "phases": phases}), {}, facts, cpu),
        Consistency(consistency.Consistency.model_validate({"name": "consistency", "levels": levels}), {}, facts, cpu),
        Progressive(
            progressive.Progressive.model_validate({"name": "progressive", "phases": rounds, **levels}), {}, facts, cpu
        ),
    )


@pytest.mark.parametrize(("key", "value"), [("sigma_min", 0.002), ("sigma_max", 120.0)])
def test_levels_that_the_teacher_was_not_trained_on_are_refused_with_key_value_and_range(key, value):
    facts = replace(FACTS, trained=(0.02, 100.0), sigma_max=100.0)
    message = rf"{key}: {value:g} is outside 0\.02 \.\. 100, the noise levels that the teacher was trained on"
    with pytest.raises(ValueError, match=rf"distill\.method\.levels\.{message}"):
        noise_levels(KarrasLevels(**{key: value}), None, facts)
    for name, section in (
        (Consistency, {"name": "consistency", "levels": {key: value}}),
        (Progressive, {"name": "progressive", "phases": [{"updates": 1, "steps": 4}], key: value}),
        (Sid, {"name": "sid", "levels": {key: value}} if key == "sigma_min" else None),
    ):
        if section:
            given = TypeAdapter(Method).validate_python(section)
            with pytest.raises(ValueError, match=message):
                name(given, {}, facts, torch.device("cpu"))
