"""SiD, SIM and Uni-Instruct: gradients of closed forms in one dimension, and what an update leaves alone."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.methods.sid import Sid as Section
from dmd.config.training import Adapter, Distill
from dmd.methods.base import Facts
from dmd.methods.parts import divergences
from dmd.methods.parts.divergences import DIVERGENCES, LARGEST_RATIO, SMALLEST_RATIO
from dmd.methods.parts.matching import matching_gradient
from dmd.methods.sid import Sid, implicit_matching, normaliser, score_identity, weighted_score_identity
from dmd.models.adapters import add_adapters, with_network
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from dmd.sampling.noise import karras_sigmas
from dmd.train.data import NoiseStream
from dmd.train.log_columns import UpdateLog
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.quadrature import (
    MEAN,
    NOISE,
    PRODUCT,
    SCALE,
    SIGMA,
    TEACHER,
    Affine,
    density_ratio,
    exact,
    parameters,
    world,
)

WHOLE = BatchSplit()
ROLES = ("teacher", "student", "fake")
FACTS = Facts(shape=(2, 1, 1), num_classes=3, sigma_data=0.6)


@pytest.mark.parametrize(
    "alpha, expected", [(0.5, (-0.05764, -0.48306)), (1.0, (0.02466, -0.57784)), (1.2, (0.05758, -0.61575))]
)
def test_score_identity_has_the_gradient_of_quadrature(alpha, expected):
    values = score_identity(*world(theta := parameters(), exact()), alpha=alpha)
    (gradient,) = torch.autograd.grad(2 * (PRODUCT * values).sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor(expected).double(), rtol=0, atol=1e-5)


def test_score_identity_without_the_gradient_through_the_networks_is_another_loss():
    image, real, fake = world(theta := parameters(), exact())
    gap = (real - fake).detach()
    values = (gap * (fake - image)).flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(2 * (PRODUCT * values).sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor((0.02466, -0.28892)).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_score_identity_of_networks_without_any_gradient_is_the_matching_gradient_whatever_alpha_is(alpha):
    """Twice it is 2 sigma^2 times the gradient of the reverse KL."""
    image, real, fake = world(theta := parameters(), exact())
    values = score_identity(image, real.detach(), fake.detach(), alpha=alpha)
    each, gradient = (
        torch.autograd.grad(total, where, retain_graph=True)[0]
        for total, where in ((values.sum(), image), (2 * (PRODUCT * values).sum(), theta))
    )
    levels = {"alpha": torch.ones_like(values), "sigma": torch.full_like(values, SIGMA)}
    matching, _ = matching_gradient(image, real, fake, **levels, weighting="sigma2/alpha")
    torch.testing.assert_close(each, matching.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, torch.tensor((0.03485, -0.40832)).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_score_identity_is_a_part_of_the_divergence_where_the_fake_denoiser_is_exact(alpha):
    image, real, fake = world(parameters().detach(), exact())
    value = (PRODUCT * score_identity(image, real, fake, alpha=alpha)).sum()
    divergence = (PRODUCT * (real - fake).flatten(1).square().mean(1)).sum()
    torch.testing.assert_close(value, (1 - alpha) * divergence, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["forward-kl", "jensen-shannon"])
@pytest.mark.parametrize("bound", [SMALLEST_RATIO, LARGEST_RATIO])
def test_weighted_score_identity_beyond_the_bounds_of_the_ratio_has_a_constant_weight(name, bound):
    divergence, ratio = DIVERGENCES[name], divergences.density_ratio(torch.full((5,), 50.0 if bound > 1 else -50.0))
    images = torch.randn(3, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = weighted_score_identity(*images, ratio, divergence=divergence, alpha=0.5)
    torch.testing.assert_close(found, divergence.weight(torch.tensor(bound)) * score_identity(*images, alpha=0.5))


def test_implicit_matching_has_the_gradient_of_the_pseudo_huber_divergence_of_fixed_samples():
    c, step = 0.5, 1e-5

    def divergence(mean: float, scale: float) -> Tensor:
        """Of the samples of now, by the score of a student elsewhere."""
        _, real, fake = world(parameters().detach(), exact((mean, scale)))
        return (PRODUCT * ((real - fake).flatten(1).square().mean(1) + c**2).sqrt()).sum()

    values = implicit_matching(*world(theta := parameters(), exact()), c=c)
    (gradient,) = torch.autograd.grad((PRODUCT * values).sum(), theta)
    by_mean = (divergence(MEAN + step, SCALE) - divergence(MEAN - step, SCALE)) / (2 * step)
    by_scale = (divergence(MEAN, SCALE + step) - divergence(MEAN, SCALE - step)) / (2 * step)
    torch.testing.assert_close(gradient, torch.stack([by_mean, by_scale]), rtol=1e-3, atol=0)
    assert gradient.abs().min() > 1e-3


def test_implicit_matching_of_the_squared_norm_is_score_identity_at_alpha_one():
    """c ((mean y^2 + c^2)^1/2 - c), c far above y, is half the squared norm; the gradients are those of the table."""
    c = 1e4
    image, real, fake = world(theta := parameters(), exact())
    values = c * implicit_matching(image, real, fake, c=c)
    torch.testing.assert_close(values, score_identity(image, real, fake, alpha=1.0), rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(2 * (PRODUCT * values).sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor((0.02466, -0.57784)).double(), rtol=0, atol=1e-5)
    of_pixels = torch.randn(3, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()  # means, both of them
    values = c * implicit_matching(*of_pixels, c=c)
    torch.testing.assert_close(values, score_identity(*of_pixels, alpha=1.0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_loss_of_the_student_has_the_gradient_of_the_product_rule_with_a_constant_weight(alpha):
    config = Section(name="sid", divergence={"kind": "sid", "alpha": alpha})
    networks, fake = {"teacher": TEACHER, "student": Affine(), "fake": exact((0.3, 0.6))}, exact((0.3, 0.6))
    method = Sid(config, networks, Facts((1, 1, 1), 0, 0.5), torch.device("cpu"))  # type: ignore[arg-type]
    clock, random = plan(config)[0].clock(0), torch.Generator().manual_seed(0)
    step = method.steps(config, clock)[-1]
    z, n = torch.randn(2, 50, 1, 1, 1, generator=random, dtype=torch.float64)
    sigma, label, small = torch.full((50,), SIGMA).double(), torch.full((50,), -1), 1e-5
    rows = {"noise": z, "level_noise": n, "sigma": sigma, "label": label, "bin": torch.zeros(50, dtype=torch.int64)}
    method.loss(step, step.parts[0], rows, clock, UpdateLog(BatchSplit())).backward()

    def slope(denoiser: nn.Module, noised: Tensor) -> Tensor:
        return (denoiser(noised + small, sigma, label) - denoiser(noised - small, sigma, label)) / (2 * small)

    image = MEAN + SCALE * z
    noised = image + SIGMA * n
    real, made = TEACHER(noised, sigma, label), fake(noised, sigma, label)
    gap, bent = real - made, slope(TEACHER, noised) - slope(fake, noised)
    by_image = bent * (real - image - alpha * gap) + gap * (slope(TEACHER, noised) - 1 - alpha * bent)
    by_image = by_image / (image - real).abs()  # one number per image: its mean error is its error
    expected = torch.stack([by_image.mean(), (by_image * z).mean()])
    torch.testing.assert_close(networks["student"].theta.grad, expected, rtol=1e-6, atol=1e-9)  # type: ignore[union-attr]


def weighted_gradient(name: str, sigma: float = SIGMA, *, alpha: float = 0.5) -> Tensor:
    """Of twice the loss of an f-divergence by (mean, scale), with the exact ratio of densities."""
    image, real, fake = world(theta := parameters(), exact(), sigma)
    ratio = density_ratio(image + sigma * NOISE, sigma).flatten()
    values = weighted_score_identity(image, real, fake, ratio, divergence=DIVERGENCES[name], alpha=alpha)
    return torch.autograd.grad(2 * (PRODUCT * values).sum(), theta)[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reverse-kl", (-0.05764, -0.48306)),
        ("forward-kl", (0.12016, -1.00922)),
        ("jensen-shannon", (-0.01484, -0.27731)),
    ],
)
def test_weighted_score_identity_has_the_gradient_of_the_weighted_fisher_divergence(name, expected):
    torch.testing.assert_close(weighted_gradient(name), torch.tensor(expected).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("reverse-kl", 1.0, (0.03556, -0.41666)),
        ("forward-kl", 1.0, (0.17329, -0.72770)),
        ("jensen-shannon", 1.0, (0.03213, -0.23899)),
        ("squared-hellinger", 0.25, (0.02019, -0.12944)),
    ],
)
def test_integral_of_the_weighted_score_identity_over_levels_has_the_gradient_of_the_f_divergence(
    name, factor, expected
):
    """Over levels s from SIGMA up with weight 1 / s^3, which is du / 2 for u = 1 / s^2."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    top = 1 / SIGMA**2
    parts = [
        weight * top / 4 * weighted_gradient(name, float((top * (node + 1) / 2) ** -0.5))
        for node, weight in zip(nodes, weights, strict=True)
    ]
    found = factor * torch.stack(parts).sum(0)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_weighted_score_identity_of_the_reverse_kl_is_score_identity_whatever_the_ratio_is(alpha):
    image, real, fake = torch.randn(3, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    ratio = torch.linspace(0.1, 20.0, 5).double()
    found = weighted_score_identity(image, real, fake, ratio, divergence=DIVERGENCES["reverse-kl"], alpha=alpha)
    torch.testing.assert_close(found, score_identity(image, real, fake, alpha=alpha))


def test_weighted_score_identity_of_the_forward_kl_is_the_ratio_times_that_at_alpha_one():
    """Its second term is 0, and the ratio passes a gradient: where it is held constant, the gradient is another one."""
    image, real, fake = world(theta := parameters(), exact())
    ratio = density_ratio(image + SIGMA * NOISE).flatten()
    values = weighted_score_identity(image, real, fake, ratio, divergence=DIVERGENCES["forward-kl"], alpha=0.5)
    torch.testing.assert_close(values, ratio * score_identity(image, real, fake, alpha=1.0))
    held = ratio.detach() * score_identity(image, real, fake, alpha=1.0)
    (gradient,) = torch.autograd.grad(2 * (PRODUCT * held).sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor((0.12016, -0.70397)).double(), rtol=0, atol=1e-5)


def test_normaliser_is_one_over_the_mean_error_and_no_more_than_its_floor_allows():
    image = torch.tensor([[[[1.0, -3.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    found = normaliser(image, torch.zeros(2, 1, 1, 2))
    torch.testing.assert_close(found, torch.tensor([0.5, 1e5]))
    assert not found.requires_grad


def test_levels_run_along_the_curve_of_the_sampler_from_its_end():
    config = Section(name="sid")
    grid = karras_sigmas(11, sigma_min=0.002, sigma_max=80.0, rho=7.0).flip(0).float()
    whole = Sid(Section(name="sid", levels={"last": 1.0}), {}, FACTS, torch.device("cpu"))  # type: ignore[arg-type]
    torch.testing.assert_close(whole.levels(torch.linspace(0, 1, 11)), grid)
    method = Sid(config, {}, FACTS, torch.device("cpu"))  # type: ignore[arg-type]
    clock = plan(config)[0].clock(0)
    fake, student = method.steps(config, clock)
    drawn = method.draw(student, clock, torch.Generator().manual_seed(0))["noise"]
    assert 0.002 <= float(drawn["sigma"].min()) < 0.1 and 15 < float(drawn["sigma"].max()) <= 24.5
    assert drawn["bin"].min() == 0 and drawn["bin"].max() == 9
    logs = method.draw(fake, clock, torch.Generator().manual_seed(0))["noise"]["sigma"].log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.3) and float(logs.std()) == pytest.approx(1.2, abs=0.2)


def section(**changed) -> Distill:
    """Of a distillation of six updates."""
    method = {"name": "sid", "batch_size": 8, "phases": [{"updates": 6}], **changed.pop("method", {})}
    return Distill.model_validate(
        {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}} | changed
    )


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    made = Denoiser(
        build({"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}),
        sigma_data=0.6,
    )
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return made


def trainer(distill: Distill, *, fake_seed: int = 1, split: BatchSplit = WHOLE) -> Trainer:
    """Teacher and student are equal; so is the fake denoiser where its seed is 0."""
    modules = dict(zip(ROLES, (denoiser(0), denoiser(0), denoiser(fake_seed)), strict=True))
    return assemble(distill, modules, FACTS, distances={}, split=split)


def train(found: Trainer, first: int, stop: int) -> list[dict[str, float]]:
    phases, _ = plan(found.training.method)
    rows = loader(found, {"noise": NoiseStream(FACTS)}, phases, stage="distill")
    logs = []
    for update in range(first, stop):
        row = found.update(phases.clock(update), rows.take(update))
        logs.append({"update": update, "phase": 0, **row})
    rows.close()
    return logs


def gradients(found: Trainer, name: str) -> dict[str, list[Tensor | None]]:
    """What one step of the first update leaves, by role."""
    phases, _ = plan(found.training.method)
    rows = loader(found, {"noise": NoiseStream(FACTS)}, phases, stage="distill")
    (prepared,) = [each for each in rows.take(0) if each.step.name == name]
    rows.close()
    found.networks.train_only(prepared.step.trains)
    given = prepared.rows["noise"], phases.clock(0), UpdateLog(BatchSplit())
    loss = found.method.loss(prepared.step, prepared.step.parts[0], *given)
    loss.backward()
    left = {role: [each.grad for each in found.networks.weights(role).parameters()] for role in found.networks}
    return left | {"loss": [loss.detach()]}


@pytest.mark.parametrize("divergence", [{"kind": "sid"}, {"kind": "sim"}])
def test_student_stays_while_the_fake_denoiser_is_the_teacher(divergence):
    left = gradients(trainer(section(method={"divergence": divergence}), fake_seed=0), "student")
    assert left["loss"][0] == 0
    assert max(float(value.abs().max()) for value in left["student"] if value is not None) < 1e-6
    moved = gradients(trainer(section(method={"divergence": divergence})), "student")["student"]
    assert max(float(value.abs().max()) for value in moved if value is not None) > 1e-3


def adapted(distill: Distill) -> Trainer:
    """Of one frozen network that carries an adapter each for student and fake denoiser."""
    carrier = denoiser(0)
    networks = add_adapters(carrier.network, Adapter(rank=2).model_dump(), ("student", "fake"), seed=0)
    for network in networks[1:]:
        for parameter in network.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape)
    modules = {role: with_network(carrier, each) for role, each in zip(ROLES, networks, strict=True)}
    return assemble(distill, modules, FACTS, distances={}, split=WHOLE)


@pytest.mark.parametrize("made", [trainer, adapted])
@pytest.mark.parametrize("divergence", [{"kind": "sid"}, {"kind": "sim"}])
@pytest.mark.parametrize("name, other", [("student", "fake"), ("fake", "student")])
def test_a_step_leaves_gradients_on_its_own_network_alone(name, other, divergence, made):
    left = gradients(made(section(method={"divergence": divergence})), name)
    assert all(value is not None for value in left[name]) and any(bool(value.any()) for value in left[name])
    assert left[other] == [None] * len(left[other]) and left["teacher"] == [None] * len(left["teacher"])


def test_fake_denoiser_is_trained_first_and_as_often_as_the_phase_says():
    config = section(method={"phases": [{"updates": 2}, {"updates": 2, "fake_updates": 3}]}).method
    assert isinstance(config, Section)
    phases, _ = plan(config)
    names = [[step.name for step in Sid.steps(config, phases.clock(update))] for update in (1, 2)]
    assert names == [["fake", "student"], ["fake", "fake", "fake", "student"]]


@pytest.mark.parametrize("divergence", [{"kind": "sid"}, {"kind": "sim"}])
def test_student_learns_a_gaussian_from_its_exact_teacher(divergence):
    mean, std = torch.tensor([0.5, -0.4])[None, :, None, None], 0.3
    distill = section(
        method={"batch_size": 64, "phases": [{"updates": 300}], "levels": {"last": 0.55}, "divergence": divergence},
        optimisers={"student": {"learning_rate": 5e-3}},
        schedule={"warmup": 0, "decay": "linear"},
        ema_decay=0.9,
    )
    exact_teacher = GaussianMixtureDenoiser(mean, torch.tensor([std]), torch.tensor([1.0]))
    modules = {"teacher": exact_teacher, "student": denoiser(0), "fake": denoiser(0)}
    found = assemble(distill, modules, FACTS, distances={}, split=WHOLE)
    logs = train(found, 0, 300)
    random = torch.Generator().manual_seed(0)
    noise, label = torch.randn(2000, 2, 1, 1, generator=random), torch.randint(3, (2000,), generator=random)
    with torch.no_grad():
        image = found.method.generate({"noise": noise, "label": label})
    torch.testing.assert_close(image.mean(0), mean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(image.std(0), torch.full((2, 1, 1), std), rtol=0.2, atol=0)
    assert set(logs[0]) > {"loss/student", "loss/fake", "gradient_norm/student", "gradient_norm/fake", "student/gap0"}


def test_section_asks_for_noise_alone_and_brings_its_optimisers():
    distill = Distill.model_validate({"method": {"name": "sid"}, "optimisers": {}})
    assert distill.method.reads() == frozenset()
    assert distill.method.trained == ("student", "fake")
    for role in distill.method.trained:
        optimiser = distill.optimisers[role]
        assert (optimiser.learning_rate, optimiser.betas, optimiser.weight_decay) == (1e-5, (0.0, 0.999), 0.0)
    method = Sid(distill.method, {}, FACTS, torch.device("cpu"))  # type: ignore[arg-type]
    assert method.sampling().sigmas == (2.5,)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"compute": {"shard_parameters": True}}, "compute.shard_parameters: method sid does not support it"),
        ({"optimisers": {"discriminator": {}}}, "method sid trains no discriminator"),
        ({"method": {"divergence": {"kind": "sim", "alpha": 1.2}}}, "divergence.sim.alpha"),
        ({"method": {"divergence": {"kind": "sim"}, "adversarial": {}}}, "but divergence is sim"),
        ({"method": {"divergence": {"kind": "f-divergence"}}}, "its density ratio is learned by section adversarial"),
        ({"method": {"divergence": {"kind": "f-divergence", "name": "kl"}, "adversarial": {}}}, "'forward-kl'"),
        ({"method": {"phases": [{"updates": 3, "fake_updates": 0}]}}, "greater than or equal to 1"),
    ],
)
def test_section_refuses_what_the_method_cannot_do(changed, message):
    with pytest.raises(ValidationError, match=message):
        section(**changed)


def test_levels_beyond_those_of_the_teacher_are_refused():
    """The curve ends at sigma 24.4 by default; a teacher of discrete time may know none above 14.6."""
    with pytest.raises(ValueError, match=r"use noise levels up to 24\.\d+, but the teacher has levels up to 14\.6"):
        Sid(section().method, {}, Facts((1, 1, 1), 0, 0.5, trained=(0.0, 14.6)), torch.device("cpu"))  # type: ignore[arg-type]


def judged(rows: dict[str, Tensor], step: int, *, scale: float = 1.0, **keys) -> tuple[Tensor, Trainer, UpdateLog]:
    """The loss of a step of SiD on given rows, from images as from noise, with its graph."""
    phases = [{"updates": 2, "adversarial_scale": scale}]
    found = trainer(section(method={"phases": phases, **keys}))
    clock, log = plan(found.training.method)[0].clock(0), UpdateLog(WHOLE)
    each = found.method.steps(found.training.method, clock)[step]
    found.networks.train_only(each.trains)
    losses = [found.method.loss(each, part, dict(rows), clock, log) for part in each.parts]
    return torch.stack(losses).sum(), found, log


def some_rows() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    image, noise, other = torch.randn(3, 8, 2, 1, 1, generator=random)
    rows = {"image": image, "noise": noise, "level_noise": other, "sigma": torch.rand(8, generator=random) + 0.1}
    return rows | {"label": torch.arange(8) % 3, "bin": torch.zeros(8, dtype=torch.int64)}


def test_gan_loss_of_sida_is_that_of_its_equations():
    rows, gan = some_rows(), {"student_weight": 0.3, "fake_weight": 0.7}
    (alone, _, _), (loss, found, _) = judged(rows, 0), judged(rows, 0, adversarial=gan)
    fake, sigma, label = found.networks["fake"], rows["sigma"], rows["label"]
    with torch.no_grad():
        image = found.method.generate(rows)
        sides = {}
        for name, each in (("real", rows["image"]), ("generated", image)):
            noised = each + sigma[:, None, None, None] * rows["level_noise"]
            sides[name] = fake.bottleneck(noised, sigma, label).mean(1).flatten(1)
        real, generated = torch.nn.functional.softplus(-sides["real"]), torch.nn.functional.softplus(sides["generated"])
        level_weight = math.exp(2 * 1.2**2 + 2 * 1.2) + 1 / FACTS.sigma_data**2  # 1/sigma^2 of a log-normal
        expected = 0.7 / 2 * level_weight * (real + generated).mean() / 2
    assert found.method.level_weight == pytest.approx(level_weight, rel=1e-6)
    torch.testing.assert_close(loss - alone, expected, rtol=1e-4, atol=1e-5)
    (alone, _, _), (loss, found, log) = judged(rows, 1), judged(rows, 1, adversarial=gan)
    with torch.no_grad():
        noised = image + sigma[:, None, None, None] * rows["level_noise"]
        weight = normaliser(image, found.networks["teacher"](noised, sigma, label)).mean()
        realistic = torch.nn.functional.softplus(-sides["generated"].clamp(-10, 10)).mean()
    torch.testing.assert_close(loss - alone, 0.3 * realistic)  # the first step's weight is 1
    clock = plan(found.training.method)[0].clock(0)
    found.method.after(found.method.steps(found.training.method, clock)[1], clock, log)
    torch.testing.assert_close(found.method.buffers["weight"], weight.to(torch.float32))


def test_gan_loss_of_scale_0_leaves_the_student_as_sid_does():
    rows, left = some_rows(), []
    for keys in ({}, {"adversarial": {"student_weight": 0.3}, "scale": 0.0}):
        loss, found, _ = judged(rows, 1, **keys)
        loss.backward()
        left.append(torch.cat([each.grad.flatten() for each in found.networks.weights("student").parameters()]))
    assert torch.equal(*left)


def test_phase_of_the_fake_denoiser_has_no_step_of_the_student():
    config = section(method={"phases": [{"updates": 2, "train": "fake"}, {"updates": 2}]}).method
    phases, _ = plan(config)
    names = [[step.name for step in Sid.steps(config, phases.clock(update))] for update in (1, 2)]
    assert names == [["fake"], ["fake", "student"]]


def test_scale_without_a_gan_loss_is_named():
    _, lines = section(method={"phases": [{"updates": 2, "adversarial_scale": 0.5}]}).method.plan()
    assert lines == ["phase 0: adversarial_scale 0.5 has no effect: the student has no GAN loss"]


def test_student_of_an_f_divergence_has_the_loss_of_its_equation():
    """Once with each image's ratio, the exponential of its mean logit, and the GAN loss as in SiDA."""
    rows, gan = some_rows(), {"student_weight": 0.3}
    chosen = {"kind": "f-divergence", "name": "jensen-shannon", "alpha": 0.7}
    loss, found, log = judged(rows, 1, divergence=chosen, adversarial=gan)
    alone, _, _ = judged(rows, 1, divergence=chosen, adversarial={"student_weight": 0.0})
    sida, _, _ = judged(rows, 1, adversarial=gan)
    sid, _, _ = judged(rows, 1)
    torch.testing.assert_close(loss - alone, sida - sid, rtol=1e-4, atol=1e-6)
    fake, sigma, label = found.networks["fake"], rows["sigma"], rows["label"]
    with torch.no_grad():
        image = found.method.generate(rows)
        noised = image + sigma[:, None, None, None] * rows["level_noise"]
        ratio = fake.bottleneck(noised, sigma, label).flatten(1).mean(1).exp().clamp(0.1, 20)
        real, made = found.networks["teacher"](noised, sigma, label), fake(noised, sigma, label)
        weight, gap = ratio / (1 + ratio), real - made
        first = weight * (gap * (made - image)).flatten(1).mean(1)
        second = 0.3 * (ratio / (1 + ratio)) ** 2 * gap.square().flatten(1).mean(1)
        expected = (normaliser(image, real) * (first + second)).mean()
    torch.testing.assert_close(alone, expected)
    assert float(log.value("ratio")) == pytest.approx(float(ratio.mean()))
