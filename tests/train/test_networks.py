"""The networks of a method by role: copies, moving averages, and where gradients are left."""

import copy

import pytest
import torch
from torch import nn

from dmd.config.method_base import Mode, Role, Source
from dmd.models.adapters import add_adapters, with_network
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.train.networks import NetworkSet
from tests.trainings import weights

UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [], "num_classes": 0}
MODES = {"teacher": Mode.FROZEN, "student": Mode.TRAINED, "fake": Mode.TRAINED, "target": Mode.COPIED}
ROLES = {role: Role(Source.START, mode) for role, mode in MODES.items()}


def denoiser(seed: int) -> Denoiser:
    made = Denoiser(build(UNET), sigma_data=0.5)
    random = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return made


@pytest.fixture(params=["whole", "adapters"])
def networks(request) -> NetworkSet:
    """Four networks, or four views of one that carries three adapters."""
    if request.param == "whole":
        modules = {role: denoiser(seed) for seed, role in enumerate(ROLES)}
    else:
        carrier, adapter = denoiser(0), {"rank": 2, "alpha": None, "targets": None}
        views = add_adapters(carrier.network, adapter, [*ROLES][1:], seed=0)
        modules = {role: with_network(carrier, view) for role, view in zip(ROLES, views, strict=True)}
    made = NetworkSet(modules, ROLES, ema_decay=0.75)
    random = torch.Generator().manual_seed(9)
    for role in [*ROLES][1:]:
        for parameter in made.weights(role).parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    return made


def own(networks: NetworkSet, role: str) -> torch.Tensor:
    return weights(networks.weights(role))


def image(networks: NetworkSet, role: str) -> torch.Tensor:
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return networks[role](noise, torch.ones(2), torch.full((2,), -1))


def test_copy_sets_one_network_to_another_and_no_other(networks):
    before = {role: own(networks, role) for role in [*ROLES][1:]}
    networks.copy("target", "student")
    assert torch.equal(own(networks, "target"), before["student"])
    assert torch.equal(own(networks, "student"), before["student"])
    assert torch.equal(own(networks, "fake"), before["fake"])
    assert torch.equal(image(networks, "target"), image(networks, "student"))
    networks.weights("student").requires_grad_(False)
    for parameter in networks.weights("student").parameters():
        parameter += 1.0
    assert not torch.equal(own(networks, "target"), own(networks, "student"))  # of its own


def test_copy_of_the_average_is_the_average_and_only_the_student_has_one(networks):
    networks.average_student()
    first = own(networks, "student")
    for parameter in networks.weights("student").parameters():
        parameter.data += 1.0
    networks.average_student()
    networks.copy("target", "student", averaged=True)
    torch.testing.assert_close(own(networks, "target"), 0.75 * first + 0.25 * (first + 1.0))
    with pytest.raises(ValueError, match="only the student has a moving average, not fake"):
        networks.copy("target", "fake", averaged=True)


def test_follow_is_the_closed_form_of_a_moving_target(networks):
    target, student = own(networks, "target"), own(networks, "student")
    for _ in range(3):
        networks.follow("target", "student", 0.9)
    torch.testing.assert_close(own(networks, "target"), 0.9**3 * target + (1 - 0.9**3) * student)
    assert torch.equal(own(networks, "student"), student)
    networks.follow("target", "student", 0.0)
    torch.testing.assert_close(own(networks, "target"), student)


def test_average_that_restarts_forgets_what_was_before(networks):
    for _ in range(3):
        networks.average_student()
        for parameter in networks.weights("student").parameters():
            parameter.data += 1.0
    networks.restart_average()
    now = own(networks, "student")
    assert torch.equal(weights(networks.average.module), now) and int(networks.average.n_averaged) == 0
    for parameter in networks.weights("student").parameters():
        parameter.data += 1.0
    networks.average_student()
    assert torch.equal(weights(networks.average.module), own(networks, "student"))  # the first step sets it


def test_networks_of_other_architectures_are_neither_copied_nor_followed():
    modules = {"student": nn.Linear(2, 2), "target": nn.Linear(2, 2, bias=False)}
    made = NetworkSet(modules, {role: ROLES[role] for role in modules}, ema_decay=0.9)
    for act in (lambda: made.copy("target", "student"), lambda: made.follow("target", "student", 0.5)):
        with pytest.raises(ValueError, match="networks differ: bias is in only one of them"):
            act()


def test_gradients_are_left_on_the_named_networks_and_pass_through_all_others(networks):
    for trains in (("student",), ("fake",), ("student", "fake"), ("student",)):
        networks.train_only(trains)
        made = image(networks, "student")
        loss = torch.zeros(())  # reaches the student through the others alone
        for role in ("teacher", "fake", "target"):
            loss = loss + networks[role](made, torch.ones(2), torch.full((2,), -1)).square().mean()
        loss.backward()
        for role in ROLES:
            grads = [parameter.grad for parameter in networks.weights(role).parameters()]
            if role in trains:
                assert any(grad is not None and grad.abs().sum() > 0 for grad in grads), role
            else:
                assert all(grad is None for grad in grads), role
        for role in ROLES:
            networks[role].zero_grad()


def test_checkpoints_keep_what_changes_and_the_average(networks):
    assert networks.checkpointed().keys() == {"network.student", "network.fake", "network.target", "average"}
    for name, module in networks.checkpointed().items():
        if name != "average":
            assert module is networks.weights(name.removeprefix("network."))


def test_networks_are_in_eval_mode_and_only_what_is_trained_wants_gradients():
    modules = {role: copy.deepcopy(denoiser(0)).train() for role in ROLES}
    made = NetworkSet(modules, ROLES, ema_decay=0.9)
    assert not any(module.training for role in made for module in made[role].modules())
    wanted = {role: {parameter.requires_grad for parameter in made[role].parameters()} for role in made}
    assert wanted == {"teacher": {False}, "student": {True}, "fake": {True}, "target": {False}}
