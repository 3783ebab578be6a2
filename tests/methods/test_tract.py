"""TRACT: its targets in analytic worlds, groups and phases, the self-teacher."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.progressive import two_steps
from dmd.methods.tract import SELF_TEACHER, Tract
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.sampling.noise import sampling_sigmas
from dmd.train import state
from dmd.train.trainer import Trainer, assemble
from tests.methods.test_progressive import GRID, MLP, gaussian, images, mixture, run, step, weights
from tests.trainings import WHOLE


def section(groups: list[int], updates: int = 3, **changed: Any) -> Distill:
    phases = [{"groups": number, "updates": updates} for number in groups]
    method = {"name": "tract", "levels": 8, "batch_size": 6, "clip": False, "phases": phases}
    student = {"learning_rate": 1e-2}
    method |= changed.pop("method", {})
    return Distill.model_validate({"method": method, "optimisers": {"student": student}, "ema_decay": 0.5} | changed)


def method(groups: list[int], teacher: nn.Module, self_teacher: Any, **changed: Any) -> Tract:
    """With levels in float64."""
    networks = {TEACHER: teacher, STUDENT: teacher, SELF_TEACHER: self_teacher}
    facts = Facts((1, 1, 1), 0, 0.5, sigma_max=80.0)
    found = Tract(section(groups, method=changed).method, networks, facts, torch.device("cpu"))
    found.sigmas = found.sigmas.double()
    return found


@pytest.mark.parametrize(("solver", "end"), [("euler", 0.52143), ("heun", 0.52168)])
def test_target_of_a_gaussian_has_the_reference_values(solver, end):
    """A step of the teacher from 8 to 5, then one of the self-teacher from 5 to the end of the group at 1."""
    found = method([1], gaussian(), gaussian(), solver=solver)
    found.sigmas, found.size = torch.tensor([1.0, 5.0, 8.0], dtype=torch.float64), 2
    image, label = images(2.0), torch.tensor([-1])
    target = found.target(image, torch.tensor([2]), label)
    reached = step(lambda *_: target, image, found.sigmas[2:], found.sigmas[:1])
    assert reached.item() == pytest.approx(end, abs=1e-5)
    if solver == "euler":
        assert target.item() == pytest.approx(0.31021, abs=1e-5)


def test_groups_of_two_levels_whose_self_teacher_is_the_teacher_have_the_targets_of_progressive_distillation():
    teacher = mixture()
    found = method([4], teacher, teacher, solver="euler")
    image, label, level = images(90.0, -2.0, 0.4, 1.0), torch.full((4,), -1), torch.tensor([8, 6, 4, 2])
    trio = tuple(found.sigmas[level - number] for number in (0, 1, 2))
    assert torch.equal(found.target(image, level, label), two_steps(teacher, image, trio, label))


def heun(teacher: Any, image: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Heun's step, Euler's to 0."""
    end = step(teacher, image, sigma, following)
    if following == 0:
        return end
    label = torch.full((len(image),), -1)
    slopes = [(x - teacher(x, s, label)) / s for x, s in ((image, sigma), (end, following))]
    return image + (following - sigma) * (slopes[0] + slopes[1]) / 2


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_self_teacher_that_has_learnt_all_leads_to_where_all_steps_of_the_teacher_lead(solver, groups):
    teacher, take = mixture(), {"euler": step, "heun": heun}[solver]

    def learnt(image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """The x0 with which one step ends where the teacher's steps to the end of the group do; one level for all."""
        level = int((found.sigmas == sigma[0]).nonzero())
        end, reached = (level - 1) // found.size * found.size, image
        for number in range(level, end, -1):
            reached = take(teacher, reached, found.sigmas[number][None], found.sigmas[number - 1][None])
        return (sigma[0] * reached - found.sigmas[end] * image) / (sigma[0] - found.sigmas[end])

    found = method([groups], teacher, learnt, solver=solver)
    for level in range(1, 9):
        image, sigma = images(-1.5, 0.3, 2.0), found.sigmas[level].expand(3)
        label = torch.full((3,), -1)
        target = found.target(image, torch.full((3,), level), label)
        torch.testing.assert_close(target, learnt(image, sigma, label), rtol=1e-9, atol=1e-9)


def test_target_at_the_lowest_level_is_the_teachers_x0_and_where_a_group_ends_it_is_the_teachers_step():
    """There the self-teacher, which knows nothing, has no part."""
    teacher = mixture()
    found = method([2], teacher, lambda image, sigma, label: torch.full_like(image, torch.nan), solver="euler")
    image, label = images(0.2, 3.0), torch.full((2,), -1)
    level = torch.tensor([1, 5])
    target = found.target(image, level, label)
    assert torch.equal(target, teacher(image, found.sigmas[level], label))


def test_images_of_the_self_teacher_are_limited_to_their_range():
    far = lambda image, sigma, label: torch.full_like(image, 3.0)  # noqa: E731
    image, level, label = images(0.5), torch.tensor([2]), torch.tensor([-1])
    limited = method([1], gaussian(), far, clip=True).target(image, level, label)
    one = method([1], gaussian(), lambda image, sigma, label: torch.ones_like(image)).target(image, level, label)
    free = method([1], gaussian(), far).target(image, level, label)
    assert torch.equal(limited, one) and not torch.equal(limited, free)


def test_later_phases_have_the_levels_where_groups_begin_and_take_eulers_steps():
    found = method([12, 4, 2], gaussian(), gaussian(), levels=24)
    phases, _ = found.config.plan()
    whole = sampling_sigmas(24, **GRID)
    for phase, every, size in zip(phases, (1, 2, 6), (2, 3, 2), strict=True):
        found.configure(phase)
        assert torch.equal(found.sigmas, whole[::every].flip(0).float())
        assert found.size == size and found.heun == (phase.index == 0)
        calls = found.sampling()
        assert len(calls.sigmas) == phase.config.groups and calls.between == "ode"
        assert torch.tensor(calls.sigmas).equal(whole[:-1:every][::size].float())
    assert found.sampling() == Calls((80.0, whole[12].float().item()), between="ode")


@pytest.mark.parametrize(
    ("groups", "message"),
    [([3], "8 levels do not make 3 equal"), ([4, 4], "4 levels do not make 4"), ([8], "8 levels")],
)
def test_groups_that_do_not_divide_the_levels_are_refused(groups, message):
    with pytest.raises(ValidationError, match=message):
        section(groups)


def points(training: Distill) -> Trainer:
    """Networks of equal random weights."""
    torch.manual_seed(0)
    teacher = Denoiser(build(MLP), sigma_data=0.5)
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    modules = {role: copy.deepcopy(teacher) for role in training.method.roles()}
    return assemble(training, modules, Facts((2, 1, 1), 0, 0.5, sigma_max=80.0), distances={}, split=WHOLE)


def test_self_teacher_is_the_mean_of_the_students_of_the_phase_with_decaying_weights():
    trainer = points(section([4, 1], method={"target_decay": 0.6}))
    students: list[Tensor] = []
    for update in range(6):
        run(trainer, update, update + 1)
        students = [*(students if update != 3 else []), weights(trainer.networks[STUDENT])]
        shares = [0.6 ** (len(students) - 1 - number) for number in range(len(students))]
        expected = sum(share * student for share, student in zip(shares, students, strict=True)) / sum(shares)
        torch.testing.assert_close(weights(trainer.networks[SELF_TEACHER]), expected, rtol=1e-5, atol=1e-6)


def test_averaged_student_of_a_phase_teaches_the_next_and_the_optimiser_goes_on():
    trainer = points(section([4, 1]))
    networks, begun = trainer.networks, weights(trainer.networks[TEACHER])
    run(trainer, 0, 3)
    assert torch.equal(weights(networks[TEACHER]), begun)
    averaged, steps = weights(networks.average.module), networks.optimisers[STUDENT].adamw.state
    run(trainer, 3, 4)
    assert torch.equal(weights(networks[TEACHER]), averaged) and not torch.equal(averaged, begun)
    assert {int(entry["step"]) for entry in steps.values()} == {4}


def test_one_phase_leaves_the_teacher_as_it_is_and_out_of_checkpoints():
    assert not any(name.startswith("network.teacher.") for name in state.state(points(section([1]))))
