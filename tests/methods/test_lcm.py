"""LCM: step, identity at the lowest level, guidance, grid of timesteps, refusals."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.methods.lcm import Lcm as Section
from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.lcm import Lcm
from dmd.methods.parts.drawn_guidance import guided_x0
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample
from dmd.models.guidance import unguided, with_guidance
from dmd.sampling.noise import karras_sigmas
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import plan
from tests.methods.test_every_method import FACTS, LCM, METHODS, denoiser, random_guidance, trainer
from tests.models.test_guidance import EMPTY, conditional
from tests.trainings import WHOLE

MEAN, STD = 0.3, 0.5
KEYS: dict[str, Any] = {**LCM, "phases": [{"updates": 4}]}
NONE = {"lowest": 1.0, "highest": 1.0}


class Exact(nn.Module):
    """The end of the ODE of a Gaussian; it has no use for guidance."""

    def forward(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return MEAN + (image - MEAN) * per_sample(STD / (STD**2 + sigma.square()).sqrt(), image)


def method_of(networks: dict[str, nn.Module], facts: Facts = FACTS, **keys: Any) -> Lcm:
    given: Any = networks
    return Lcm(Section.model_validate({**KEYS, **keys}), given, facts, torch.device("cpu"))


def rows(num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, guidance."""
    random = torch.Generator().manual_seed(0)
    guidance = 1 + 5 * torch.rand(num, generator=random)
    return torch.randn(num, 2, 1, 1, generator=random), torch.arange(num) % 3, guidance


def test_target_at_the_lowest_level_is_the_guided_step_itself():
    method = trainer(METHODS["lcm"]).method
    assert isinstance(method, Lcm)
    image, label, guidance = rows(6)
    index = torch.tensor([0, 3] * 3)
    sigma, lower = (per_sample(method.sigmas[each], image) for each in (index + 1, index))
    teacher = unguided(method.denoiser("teacher"))
    with torch.no_grad():
        without, given = (teacher(image, sigma.flatten(), each) for each in (torch.full((6,), -1), label))
        x0 = without + per_sample(guidance, image) * (given - without)
        step = x0 + lower / sigma * (image - x0)
        found = method.target(image, index, label, guidance)
        later = method.networks["target"](step, lower.flatten(), label, guidance=guidance)
    torch.testing.assert_close(found[::2], step[::2])
    torch.testing.assert_close(found[1::2], later[1::2])
    assert not torch.allclose(found[::2], later[::2], rtol=1e-3)


def test_without_guidance_it_is_consistency_distillation_of_the_plain_teacher():
    teacher, student = denoiser(0), denoiser(1)
    both = {"teacher": with_guidance(teacher, torch.tensor(-1), 4.0), "student": student}
    keys = {"embedded": False, "target_decay": 0.0}
    guided, plain = method_of(both, **keys), method_of({**both, "teacher": teacher}, guidance=NONE, **keys)
    image, label, _ = rows(6)
    with torch.no_grad():
        found, expected = (each.target(image, torch.arange(6), label, torch.ones(6)) for each in (guided, plain))
    torch.testing.assert_close(found, expected)
    assert isinstance(trainer({**KEYS, "guidance": NONE}).networks["teacher"].network, type(teacher.network))


def test_exact_end_of_the_ode_has_a_loss_that_falls_with_the_number_of_levels():
    facts = Facts((1, 1, 1), 0, STD)
    exact = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.tensor([1.0]))
    losses = []
    for count in (26, 101, 401):
        keys = {"levels": {"kind": "karras", "count": count}, "guidance": NONE, "batch_size": 4000, "huber": None}
        method = method_of({"teacher": exact, "student": Exact()}, facts, embedded=False, target_decay=0.0, **keys)
        clock = plan(method.config)[0].clock(0)
        (step,) = method.steps(method.config, clock)
        random = torch.Generator().manual_seed(0)
        drawn = method.draw(step, clock, random)["images"]
        image = MEAN + STD * torch.randn(4000, 1, 1, 1, generator=random)
        given = {**drawn, "image": image, "label": torch.full((4000,), -1)}
        losses.append(float(method.loss(step, step.parts[0], given, clock, UpdateLog(WHOLE))))
    assert losses[1] < losses[0] / 100 and losses[2] < losses[1] / 100  # of fourth order: the error of a step, squared


def test_levels_are_every_kth_timestep_down_from_the_last_and_the_lowest():
    teacher = conditional()  # 50 timesteps
    networks = {"teacher": with_guidance(teacher, EMPTY, 4.0), "student": teacher}
    keys = {"times": {"kind": "listed", "sigmas": [1.5]}, "calls": 1}
    method = method_of(networks, levels={"kind": "teacher", "skip": 20}, **keys)
    assert teacher.table is not None
    torch.testing.assert_close(method.sigmas, teacher.table[1].float()[[0, 9, 29, 49]])
    with pytest.raises(ValueError, match=r"levels\.skip: 50 is not below the 50 timesteps of the teacher"):
        method_of(networks, levels={"kind": "teacher", "skip": 50}, **keys)
    with pytest.raises(ValueError, match=r"levels\.kind: teacher, but this teacher has no table of noise levels"):
        method_of({"teacher": denoiser(0)}, levels={"kind": "teacher"})
    with pytest.raises(ValueError, match="calls from sigma 1000 to 1000 are not within the levels, above 0.0316"):
        method_of(networks, levels={"kind": "teacher"}, times={"kind": "listed", "sigmas": [1e3]}, calls=1)


def test_fewer_calls_have_the_times_of_their_number():
    method = trainer({**KEYS, "calls": 3}).method
    assert {num: calls.sigmas for num, calls in method.fewer_calls().items()} == {
        1: (80.0,),
        2: (80.0, pytest.approx(0.4)),
    }
    assert method.sampling().sigmas[1] > 0.5
    assert not trainer({**KEYS, "calls": 2, "times": {"kind": "listed", "sigmas": [80.0, 1.0]}}).method.fewer_calls()


def test_student_and_target_are_told_the_guidance_of_their_row():
    method = trainer(METHODS["lcm"]).method
    assert isinstance(method, Lcm)
    for name in ("student", "target"):
        random_guidance(method.networks[name])
    clock = plan(method.config)[0].clock(0)
    (step,) = method.steps(method.config, clock)
    image, label, guidance = rows(6)
    index = torch.tensor([1, 2, 3] * 2)
    given = {"image": image, "noise": torch.zeros_like(image), "index": index, "label": label, "guidance": guidance}
    with torch.no_grad():
        found = method.loss(step, step.parts[0], given, clock, UpdateLog(WHOLE))
        x0 = method.networks["student"](image, method.sigmas[index + 1], label, guidance=guidance)
        error = x0 - method.target(image, index, label, guidance)
        teacher = guided_x0(method.denoiser("teacher"), image, method.sigmas[index + 1], label, guidance)
        step_down = torch.lerp(teacher, image, per_sample(method.sigmas[index] / method.sigmas[index + 1], image))
        target = method.networks["target"](step_down, method.sigmas[index], label, guidance=guidance)
    c = method.config.huber
    assert c is not None
    torch.testing.assert_close(x0 - error, target)
    torch.testing.assert_close(found, ((error.square() + c**2).sqrt() - c).mean())


@pytest.mark.parametrize("huber", [None, 0.3])
def test_loss_is_the_mean_of_each_value(huber):
    student = nn.Module()
    student.forward = lambda image, sigma, label: torch.full_like(image, 0.5)  # type: ignore[method-assign]
    keys = {"embedded": False, "target_decay": 0.0, "guidance": NONE, "huber": huber, "batch_size": 2}
    method = method_of({"teacher": denoiser(0), "student": student}, **keys)
    clock = plan(method.config)[0].clock(0)
    image, label, guidance = rows(2)
    index = torch.tensor([0, 0])
    given = {"image": image, "noise": torch.zeros_like(image), "index": index, "label": label, "guidance": guidance}
    with torch.no_grad():
        error = 0.5 - method.target(image, index, label, guidance)
        found = method.loss(method.steps(method.config, clock)[0], None, given, clock, UpdateLog(WHOLE))  # type: ignore[arg-type]
    expected = error.square() if huber is None else (error.square() + huber**2).sqrt() - huber
    torch.testing.assert_close(found, expected.mean())


def test_sections_that_do_not_fit_are_refused():
    sigmas = karras_sigmas(2, sigma_min=0.4, sigma_max=80.0, rho=7.0).tolist()
    for keys, message in (
        ({"guidance": {"lowest": 3.0, "highest": 2.0}}, "highest 2 is below lowest 3"),
        ({"times": {"kind": "lcm"}}, "times.kind: lcm has the teacher's timesteps, but levels has kind karras"),
        ({"times": {"kind": "listed", "sigmas": sigmas}}, "times.sigmas: 2 noise levels for calls 4"),
    ):
        with pytest.raises(ValidationError, match=message):
            Section.model_validate({**KEYS, **keys})
    with pytest.raises(ValidationError, match=r"adapter: .* guidance as an input: set method\.embedded to false"):
        Distill.model_validate({"method": KEYS, "adapter": {"rank": 2}})
    assert Distill.model_validate({"method": {**KEYS, "embedded": False}, "adapter": {"rank": 2}}).adapter


def test_student_and_target_take_the_guidance_and_begin_with_it_in_the_middle():
    roles = Section.model_validate({**KEYS, "guidance": {"lowest": 2.0, "highest": 6.0}}).roles()
    assert [(role.guidance, role.guidance_input) for role in roles.values()] == [(4.0, False), (4.0, True), (4.0, True)]
    made = trainer(METHODS["lcm"]).networks
    assert all(isinstance(each := made[name], Denoiser) and each.takes_guidance for name in ("student", "target"))
