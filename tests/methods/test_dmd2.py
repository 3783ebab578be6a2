"""DMD2: what it has in common with DMD and with the sampler, one call per step, micro-batches, resume."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dmd.config.methods.dmd2 import Dmd2 as Section
from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.dmd2 import Dmd2
from dmd.methods.parts import discriminator
from dmd.methods.parts.level_table import Noised
from dmd.models import loading
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.sampling.noise import karras_sigmas
from dmd.sampling.solvers import solve
from dmd.train.data import NoiseStream
from dmd.train.measured_update import measured_steps
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.trainings import WHOLE, weights

POINTS = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
FACTS = Facts(shape=(2, 1, 1), num_classes=3, sigma_data=0.6, network=POINTS)
SIGMAS = (80.0, 5.0, 0.8)
LISTED = {"calls": 3, "times": {"kind": "listed", "sigmas": list(SIGMAS)}}


def section(**keys: Any) -> Distill:
    """Of a distillation of four updates."""
    method = {"name": "dmd2", "batch_size": 8, "phases": [{"updates": 4, "fake_updates": 2}], **keys.pop("method", {})}
    return Distill.model_validate(
        {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}} | keys
    )


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    made = Denoiser(
        build(POINTS),
        sigma_data=0.6,
    )
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return made


def trainer(distill: Distill, *, split: BatchSplit = WHOLE) -> Trainer:
    """Whose networks all differ."""
    modules = {role: denoiser(seed) for seed, role in enumerate(("teacher", "student", "fake"))}
    return assemble(distill, modules, FACTS, distances={}, split=split)


def train(found: Trainer, first: int, stop: int) -> list[dict[str, float]]:
    phases, _ = plan(found.training.method)
    rows = loader(found, {"noise": NoiseStream(FACTS)}, phases, stage="distill")
    logs = [
        {"update": update, "phase": 0, **found.update(phases.clock(update), rows.take(update))}
        for update in range(first, stop)
    ]
    rows.close()
    return logs


@pytest.mark.parametrize("by_call", [False, True])
def test_one_call_and_one_fake_update_is_dmd_without_regression_bit_for_bit(by_call):
    phases = [{"updates": 4, "fake_updates": 1}]
    new = section(method={"phases": phases, "levels_by_call": by_call})
    old = dmd({"name": "dmd", "regression_weight": 0.0, "matching_batch_size": 8, "phases": phases})
    found = trainer(new), trainer(old)
    logs = [train(each, 0, 4) for each in found]
    assert str(logs[0]) == str(logs[1])  # NaN differs from itself
    for role in ("student", "fake"):
        assert torch.equal(*(weights(each.networks[role]) for each in found))


def dmd(method: dict[str, Any]) -> Distill:
    keys = {"optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}}
    return Distill.model_validate({"method": method, **keys})


def method_of(**keys: Any) -> Dmd2:
    found = trainer(section(method=keys)).method
    assert isinstance(found, Dmd2)
    return found


def batch(num: int, calls: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    noise, label = torch.randn(num, 2, 1, 1, generator=random), torch.randint(3, (num,), generator=random)
    return {"noise": noise, "label": label, "fresh": torch.randn(num, calls - 1, 2, 1, 1, generator=random)}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_backward_simulation_is_the_sampler_up_to_the_trained_call(number):
    """The sampler of the first calls alone draws the same images from the same noise."""
    method, rows = method_of(**LISTED), batch(5, 3)
    rows["fresh"] = rows["fresh"][:, :number]
    solver = {"name": "student", "calls": Calls(SIGMAS[: number + 1]).facts()}
    expected, calls = solve(
        method.networks["student"], rows["noise"], rows["label"], solver, lambda done: rows["fresh"][:, done]
    )
    assert calls == number + 1
    torch.testing.assert_close(method.generate(rows), expected, rtol=1e-5, atol=1e-6)


def test_gradient_reaches_the_trained_call_alone():
    method, rows = method_of(**LISTED), batch(5, 3)
    student, seen = method.networks["student"], []
    student.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    method.generate(rows).sum().backward()
    assert [output.requires_grad for _, output in seen] == [False, False, True]
    left = [parameter.grad for parameter in student.parameters()]
    image = seen[-1][0].detach()
    student.zero_grad()
    student(image, torch.full((5,), SIGMAS[2]), rows["label"]).sum().backward()
    for before, parameter in zip(left, student.parameters(), strict=True):
        assert (before is None and parameter.grad is None) or torch.equal(before, parameter.grad)


def test_every_call_is_trained_and_all_images_of_a_step_take_the_same_one():
    method = method_of(**LISTED, batch_size=4)
    clock, random = plan(method.config)[0].clock(0), torch.Generator().manual_seed(0)
    student = method.steps(method.config, clock)[0]
    calls = set()
    for _ in range(30):
        rows = method.draw(student, clock, random)["noise"]
        assert rows["fresh"].shape[:1] + rows["fresh"].shape[2:] == (4, 2, 1, 1)
        assert 20 <= int(rows["level"].min()) and int(rows["level"].max()) <= 980
        calls.add(rows["fresh"].shape[1])
    assert calls == {0, 1, 2}


def test_calls_lie_on_the_curve_of_karras_or_where_they_are_listed():
    assert method_of().sampling().sigmas == (80.0,)
    assert method_of(**LISTED).sampling().sigmas == SIGMAS
    found = method_of(calls=4, times={"kind": "karras", "sigma_min": 0.5}).sampling()
    assert found.sigmas == pytest.approx(karras_sigmas(4, sigma_min=0.5, sigma_max=80.0, rho=7.0).tolist())
    assert found.between == "noise" and found.map == "denoiser"
    with pytest.raises(ValueError, match="times.sigma_max: null is the highest noise level of the denoiser"):
        method_of(times={"kind": "karras", "sigma_max": None})


def test_fake_denoiser_follows_the_student_and_is_trained_as_often_as_the_phase_says():
    config = section(method={"phases": [{"updates": 1}, {"updates": 1, "fake_updates": 2}]}).method
    assert isinstance(config, Section)
    phases, _ = plan(config)
    names = [[step.name for step in Dmd2.steps(config, phases.clock(update))] for update in (0, 1)]
    assert names == [["student", *["fake"] * 5], ["student", "fake", "fake"]]


TWO = {"calls": 2, "times": {"kind": "listed", "sigmas": [80.0, 0.4]}}


@pytest.mark.parametrize("keys", [{}, TWO, TWO | {"levels_by_call": True}])
def test_images_of_all_calls_together_learn_a_gaussian_from_its_exact_teacher(keys):
    """The fake denoiser sees the images of all calls, so that matching holds for their mixture, not for each call.

    With levels by call it holds for the last call, and for the first one with the noise that the last call gets.
    """
    mean, std = torch.tensor([0.5, -0.4])[None, :, None, None], 0.3
    distill = section(
        method={"batch_size": 64, "phases": [{"updates": 250, "fake_updates": 3}], **keys},
        optimisers={"student": {"learning_rate": 3e-3}, "fake": {"learning_rate": 5e-3}},
        schedule={"warmup": 0, "decay": "linear"},
        ema_decay=0.9,
    )
    exact = GaussianMixtureDenoiser(mean, torch.tensor([std]), torch.tensor([1.0]))
    found = assemble(distill, {"teacher": exact, "student": denoiser(0), "fake": denoiser(0)}, FACTS, distances={},
                     split=WHOLE)  # fmt: skip
    train(found, 0, 250)
    method, num = found.method, len(found.method.sampling().sigmas)
    assert isinstance(method, Dmd2)
    with torch.no_grad():
        images = [method.generate(batch(2000, call + 1)) for call in range(num)]
    image = images[-1] if distill.method.levels_by_call else torch.cat(images)  # type: ignore[union-attr]
    for each in images if distill.method.levels_by_call else [image]:  # type: ignore[union-attr]
        torch.testing.assert_close(each.mean(0), mean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(image.std(0), torch.full((2, 1, 1), std), rtol=0.25, atol=0)


@pytest.mark.parametrize("step", [0, 1])  # of the student, of the fake denoiser
def test_levels_by_call_are_those_between_the_level_of_a_call_and_the_next_one(step):
    levels = {"kind": "karras", "min_index": 20, "max_index": 980}
    method = method_of(**LISTED, levels_by_call=True, levels=levels)
    phases, _ = plan(method.config)
    kind = method.steps(method.config, phases.clock(0))[step]
    first, stop = (20, 981) if step == 0 else (0, 1000)
    seen = []
    for number, (low, high) in enumerate(((5.0, math.inf), (0.8, 5.0), (0.0, 0.8))):
        rows = {"level": torch.arange(first, stop), "fresh": torch.empty(stop - first, number)}
        level = method._level(kind, rows)
        sigma = method.table.sigmas[level]
        assert low <= sigma.min() and sigma.max() < high
        counts = level.unique(return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
        seen += level.unique().tolist()
    assert sorted(seen) == list(range(first, stop))  # each level is of one call


def test_levels_by_call_without_a_level_for_some_call_are_refused():
    times = {"kind": "listed", "sigmas": [80.0, 0.5002, 0.5001]}
    with pytest.raises(ValueError, match=r"levels_by_call: levels 20..980 .* between sigma 0.5001 and 0.5002, call 2:"):
        method_of(calls=3, times=times, levels_by_call=True)


def test_an_update_of_one_image_is_measured_like_others():
    """Memory comes from updates of one and of two rows."""
    passes = []
    for batch_size in (1, 8):
        found = trainer(section(method={"batch_size": batch_size}))
        steps = measured_steps(found, {"noise": NoiseStream(FACTS)})
        passes.append([part.passes for step in steps for part in step.parts.values()])
    assert passes[0] == passes[1]


GAN = {"adversarial": {"student_weight": 0.1, "fake_weight": 0.3, "r1": 0.5}}


def test_losses_of_the_head_are_those_of_the_paper():
    logits = torch.tensor([-2.0, 0.5])
    assert float(discriminator.realistic(logits)) == pytest.approx(
        (math.log1p(math.exp(2)) + math.log1p(math.exp(-0.5))) / 2
    )
    assert float(discriminator.generated(logits)) == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2
    )
    image = torch.tensor([[[[1.0, 2.0]]], [[[3.0, -1.0]]]], requires_grad=True)
    squares = image.square().flatten(1).sum(1)  # gradient 2 x
    assert float(discriminator.gradient_penalty(squares, image).detach()) == pytest.approx((4 * 5 + 4 * 10) / 2 / 2)


def test_head_of_the_released_networks_has_the_layers_of_the_paper():
    kinds = [(type(each).__name__, getattr(each, "kernel_size", None), getattr(each, "stride", None))
             for each in discriminator.Head(768, 8).layers]  # fmt: skip
    conv, norm, act = ("Conv2d", (4, 4), (2, 2)), ("GroupNorm", None, None), ("SiLU", None, None)
    assert kinds == [conv, norm, act, ("Conv2d", (4, 4), (1, 1)), norm, act, ("Conv2d", (1, 1), (1, 1))]
    assert discriminator.Head(768, 8)(torch.zeros(3, 768, 8, 8)).shape == (3,)


NETWORKS = {
    "mlp": {"kind": "mlp", "channels": 2, "resolution": 4, "width": 16, "layers": 2, "num_classes": 3},
    **{
        kind: {"kind": kind, "channels": 2, "resolution": 8, "width": 8, "multipliers": [1, 2], "blocks": 1,
               "attention": [4], "dropout": 0.0, "num_classes": 3}
        for kind in ("ddpmpp", "ncsnpp")
    },
    "unet2d": {
        "kind": "unet2d",
        "config": {"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16],
                   "layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": 3,
                   "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
                   "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_bottleneck_has_its_shape_and_leaves_the_pass_as_it_was(name):
    torch.manual_seed(0)
    made = Denoiser(build(NETWORKS[name]), sigma_data=0.5).eval()
    side = made.network.resolution
    inputs = torch.randn(2, 2, side, side), torch.tensor([0.3, 5.0]), torch.tensor([1, 2])
    with torch.no_grad():
        before, features, after = made(*inputs), made.bottleneck(*inputs), made(*inputs)
    channels, small = made.network.bottleneck_shape
    assert torch.equal(before, after) and features.shape == (2, channels, small, small) and features.std() > 0
    head = discriminator.new_head(NETWORKS[name])
    assert head(features[:1]).shape == (1,)
    assert head(features).detach().diff().abs() > 1e-4  # so the layers let something through


@pytest.mark.parametrize("name", ["ddpmpp", "unet2d"])
def test_gradient_penalty_reaches_the_weights_of_networks_with_attention(name):
    fake, head = Denoiser(build(NETWORKS[name]), sigma_data=0.5).eval(), discriminator.new_head(NETWORKS[name])
    image = torch.randn(2, 2, 8, 8, requires_grad=True)
    noised = Noised(image, torch.tensor([0.3, 5.0]), torch.ones(2))
    with discriminator.twice_differentiable():
        logits = discriminator.logits(head, fake, noised, torch.tensor([1, 2]))
    discriminator.gradient_penalty(logits, image).backward()
    for module in (fake, head):
        assert any(each.grad is not None and each.grad.any() for each in module.parameters())


def test_gan_loss_of_weight_0_is_none_and_reads_no_images():
    off = section(method={"adversarial": {"student_weight": 0.0, "fake_weight": 0.0}}).method
    assert off.reads() == frozenset() and "head" not in off.roles()
    assert section(method=GAN).method.reads() == {"images"}
    assert section(method=GAN).method.trained == ("student", "fake", "head")


def test_first_calls_of_the_file_are_a_student_of_their_own(tmp_path):
    facts = {"calls": method_of(**LISTED).sampling().facts()}
    found = [loading.student_calls(facts, tmp_path, calls=number).sigmas for number in (1, 2, 3)]
    assert found == [SIGMAS[:1], SIGMAS[:2], SIGMAS]


def test_section_reads_nothing_but_noise_and_keeps_every_number_of_calls():
    method = section(method=LISTED).method
    assert method.reads() == frozenset() and method.final_calls() == 3 and set(method.calls_kept()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"calls": 2, "times": {"kind": "listed", "sigmas": [80.0]}}, "times.sigmas: 1 noise levels for calls 2"),
        ({"calls": 2, "times": {"kind": "listed", "sigmas": [1.0, 2.0]}}, r"\[1.0, 2.0\] do not descend"),
        ({"adversarial": {"student_weight": 0.0}}, "adversarial: one of student_weight and fake_weight is 0"),
        ({"times": {"kind": "karras", "sigma_min": 90.0}}, "sigma_max 80 is not above sigma_min 90"),
        ({"phases": [{"updates": 1, "fake_updates": 0}]}, "greater than or equal to 1"),
    ],
)
def test_section_refuses_calls_that_contradict_each_other(keys, message):
    with pytest.raises(ValidationError, match=message):
        section(method=keys)
