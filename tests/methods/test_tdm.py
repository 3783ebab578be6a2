"""TDM: what it has in common with DMD2 and with the sampler, the fake denoiser's target, micro-batches, resume."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dmd.config.training import Distill
from dmd.methods.parts.matching import matching_gradient
from dmd.methods.tdm import Tdm, interval_loss, noised_further
from dmd.models import loading
from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.models.student_calls import Calls
from dmd.sampling.solvers import solve
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.methods import test_dmd2
from tests.methods.test_dmd2 import FACTS, NoiseStream, denoiser, train
from tests.trainings import WHOLE, weights

SIGMAS = (80.0, 5.0, 0.8)
ENDS = (5.0, 0.8, 0.0)
RATES = {"student": {"learning_rate": 1e-3, "betas": [0.9, 0.999]}, "fake": {"learning_rate": 1e-3}}
THREE = {"calls": 3, "times": {"kind": "listed", "sigmas": list(SIGMAS)}}


def section(**keys: Any) -> Distill:
    """Of a distillation of four updates with three calls."""
    method = {"name": "tdm", "batch_size": 8, "phases": [{"updates": 4, "fake_updates": 2}], **THREE}
    method |= keys.pop("method", {})
    return Distill.model_validate({"method": method, "optimisers": RATES, "schedule": {"warmup": 0}} | keys)


def trainer(distill: Distill) -> Trainer:
    """Whose networks all differ."""
    modules = {role: denoiser(seed) for seed, role in enumerate(("teacher", "student", "fake"))}
    return assemble(distill, modules, FACTS, distances={}, split=WHOLE)


def method_of(**keys: Any) -> Tdm:
    found = trainer(section(method=keys)).method
    assert isinstance(found, Tdm)
    return found


def batch(num: int, number: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows whose trained call is `number`."""
    random = torch.Generator().manual_seed(seed)
    noise, label = torch.randn(num, 2, 1, 1, generator=random), torch.randint(3, (num,), generator=random)
    return {"noise": noise, "label": label, "before": torch.zeros(num, number)}


@pytest.mark.parametrize("fake_updates", [1, 3])
def test_one_call_is_dmd2_bit_for_bit(fake_updates):
    shared = {"batch_size": 8, "calls": 1, "phases": [{"updates": 4, "fake_updates": fake_updates}]}
    shared |= {"times": {"kind": "listed", "sigmas": [20.0]}}
    found = trainer(section(method=shared)), trainer(test_dmd2.section(method=shared, optimisers=RATES))
    logs = [train(each, 0, 4) for each in found]
    assert str(logs[0]) == str(logs[1])  # NaN differs from itself
    for role in ("student", "fake"):
        assert torch.equal(*(weights(each.networks[role]) for each in found))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_backward_simulation_is_the_sampler_up_to_the_trained_call(number):
    method, rows = method_of(), batch(5, number)
    x0, image = method.trained_call(rows)
    student, calls = method.networks["student"], method.sampling()
    assert calls == Calls(SIGMAS, between="ode")
    if number < 2:
        expected = calls.before(number + 1, student, rows["noise"], rows["label"])
    else:
        solver = {"name": "student", "calls": calls.facts()}
        expected, _ = solve(student, rows["noise"], rows["label"], solver)
        assert torch.equal(x0, image)
    torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_the_trained_call_alone():
    method, seen = method_of(), []
    method.networks["student"].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    method.trained_call(batch(5, 2))
    assert seen == [False, False, True]


_nodes, _weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(100))
COMPONENTS = [(-1.0, 0.3), (0.8, 0.2)]  # mean and standard deviation without noise; equal weights


def mixture(end: float, sigma: float, *, kept: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images y, noise n and probabilities at the nodes of a product rule, and the denoiser of y at x_s.

    Each component of y has `kept` of the variance that noise of level `end` would bring. The denoiser is x_s + s^2
    times the score of x_s, which for kept = 1 is E[x0 | x_s].
    """
    spreads = [(std**2 + kept * end**2) ** 0.5 for _, std in COMPONENTS]
    image = torch.stack([mean + spread * _nodes for (mean, _), spread in zip(COMPONENTS, spreads, strict=True)])
    image = image.flatten().repeat_interleave(len(_nodes))[:, None, None, None]
    noise = _nodes.repeat(2 * len(_nodes))[:, None, None, None]
    share = torch.outer(_weights.repeat(2), _weights).flatten() / (2 * _weights.sum() ** 2)
    noised = noised_further(image, noise, torch.full((len(image),), sigma).double(), end=end)
    x = noised.flatten().requires_grad_()
    variances = torch.tensor([spread**2 + sigma**2 - end**2 for spread in spreads])
    means = torch.tensor([mean for mean, _ in COMPONENTS])
    logits = -((x[:, None] - means) ** 2) / (2 * variances) - variances.log() / 2
    (score,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    return image, noise, share, noised + sigma**2 * score[:, None, None, None]


@pytest.mark.parametrize(("end", "sigma"), [(0.0, 0.5), (0.5, 0.6), (0.5, 3.0), (1.5, 1.51)])
@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_fake_denoiser_learns_the_denoiser_of_the_images_after_the_call(end, sigma, kept):
    """The mean gradient of the loss at this denoiser is 0, against any function of x_s; that of x0's is not."""
    image, noise, share, exact = mixture(end, sigma, kept=kept)
    levels = torch.full((len(image),), sigma).double()
    if kept == 1.0:
        centres = torch.tensor([mean for mean, _ in COMPONENTS], dtype=torch.float64)[:, None, None, None]
        teacher = GaussianMixtureDenoiser(
            centres, torch.tensor([std for _, std in COMPONENTS]), torch.tensor([0.5] * 2)
        )
        noised = noised_further(image, noise, levels, end=end)
        torch.testing.assert_close(exact, teacher(noised, levels, levels), rtol=1e-6, atol=1e-6)
    fake = exact.clone().requires_grad_()
    interval_loss(fake, image, noise, levels, end=end, weight=torch.ones_like(levels)).backward()
    noised = noised_further(image, noise, levels, end=end).flatten()
    slope = fake.grad.flatten() * len(image)
    for test in (noised.new_ones(()), noised.tanh(), (-noised.square()).exp(), (noised > 0.2).double()):
        tolerance = 2e-2 if test.ndim and set(test.tolist()) == {0.0, 1.0} else 1e-6  # a jump, between two nodes
        assert float((share * slope * test).sum()) == pytest.approx(0, abs=tolerance)
    naive = (share * 2 * (exact - image).flatten() * noised.tanh()).sum()
    assert (abs(float(naive)) > 1e-2) is (end > 0)


def test_loss_stays_bounded_at_the_lowest_level_of_an_interval():
    image, noise = torch.randn(2, 4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for excess in (1e-7, 1e-3):
        sigma = torch.full((4000,), 0.8 * (1 + excess))
        found = interval_loss(torch.zeros_like(image), image, noise, sigma, end=0.8, weight=torch.ones(4000))
        assert float(found) == pytest.approx(0.8**2, rel=0.1)  # all of it from the noise of the target


def test_intervals_divide_the_levels_by_the_calls():
    method = method_of()
    covered = torch.zeros(len(method.table))
    for (first, stop), (low, high), end, top in zip(
        method.intervals, method._matched(), ENDS, (np.inf, *SIGMAS[1:]), strict=True
    ):
        covered[first:stop] += 1
        assert end < float(method.table.sigmas[first]) and float(method.table.sigmas[stop - 1]) <= top * (1 + 1e-5)
        assert (low, high) == (max(first, 20), min(stop, 981))
    assert bool((covered == 1).all())
    with pytest.raises(ValueError, match=r"call 2, from sigma 5 to 4.999, has no noise level .* use more levels or"):
        method_of(times={"kind": "listed", "sigmas": [80.0, 5.0, 4.999]})


def test_every_call_is_trained_at_levels_of_its_own_interval():
    method = method_of(batch_size=4)
    clock, random = plan(method.config)[0].clock(0), torch.Generator().manual_seed(0)
    student, carried, fresh = method.steps(method.config, clock)
    numbers = set()
    for _ in range(30):
        rows = method.draw(student, clock, random)["noise"]
        numbers.add(rows["before"].shape[1])
        for other in (carried, fresh):
            part = other.parts[0].name
            drawn = method.draw(other, clock, random)[part]
            assert ("before" in drawn) is (part != "carried")
            for number, (first, stop) in enumerate(method.intervals):
                level = drawn["level"][:, number]
                assert first <= int(level.min()) and int(level.max()) < stop
        assert int(rows["level"].min()) >= 20 and int(rows["level"].max()) <= 980
    assert numbers == {0, 1, 2}


def test_fake_denoiser_sees_the_interval_of_the_call_whose_images_it_carries():
    found = trainer(section())
    seen: list[tuple[float, float]] = []
    calls: list[int] = []
    levels = torch.tensor(SIGMAS).tolist()
    fake, student = found.networks["fake"], found.networks["student"]
    fake.register_forward_hook(lambda module, inputs, output: seen.append((inputs[1].min(), inputs[1].max())))
    student.register_forward_hook(lambda module, inputs, output: calls.append(levels.index(float(inputs[1][0]))))
    for update in range(4):
        seen.clear(), calls.clear()
        phases, _ = plan(found.training.method)
        rows = loader(found, {"noise": NoiseStream(FACTS)}, phases, stage="distill")
        found.update(phases.clock(update), rows.take(update))
        rows.close()
        numbers = [number for number, after in zip(calls, [*calls[1:], 0], strict=True) if after == 0]
        for (low, high), number in zip(seen, [numbers[0], numbers[0], numbers[1]], strict=True):
            top = float("inf") if number == 0 else SIGMAS[number]
            assert ENDS[number] < low and high <= top * (1 + 1e-5)


def test_images_after_each_call_learn_a_gaussian_from_its_exact_teacher():
    """Unlike in dmd2 each call matches by itself: after call i images are N(mean, std^2 + level^2).

    Spreads come later than means: 2,000 updates of 256 images end at .49 and .48 of .5, and .30 and .33 of .3.
    """
    mean, std, sigmas = torch.tensor([0.5, -0.4])[None, :, None, None], 0.3, (80.0, 0.4)
    distill = section(
        method={
            "batch_size": 64,
            "phases": [{"updates": 250, "fake_updates": 3}],
            "calls": 2,
            "times": {"kind": "listed", "sigmas": list(sigmas)},
        },
        optimisers={"student": {"learning_rate": 3e-3, "betas": [0.9, 0.999]}, "fake": {"learning_rate": 5e-3}},
        schedule={"warmup": 0, "decay": "linear"},
        ema_decay=0.9,
    )
    exact = GaussianMixtureDenoiser(mean, torch.tensor([std]), torch.tensor([1.0]))
    found = assemble(distill, {"teacher": exact, "student": denoiser(0), "fake": denoiser(0)}, FACTS, distances={},
                     split=WHOLE)  # fmt: skip
    train(found, 0, 250)
    method = found.method
    assert isinstance(method, Tdm)
    for number, end in enumerate((0.4, 0.0)):
        with torch.no_grad():
            image = method.trained_call(batch(4000, number))[1]
        torch.testing.assert_close(image.mean(0), mean[0], rtol=0, atol=0.06)
        expected = torch.full((2, 1, 1), (std**2 + end**2) ** 0.5)
        torch.testing.assert_close(image.std(0), expected, rtol=0.5, atol=0)


def test_pseudo_huber_divides_each_element_by_its_size():
    image, real, fake = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    level = {"alpha": torch.ones(2), "sigma": torch.ones(2), "weighting": "sigma2/alpha"}
    gradient, _ = matching_gradient(image, real, fake, **level, huber=0.5)
    point = image.clone().requires_grad_()
    target = image - (fake - real)
    (((point - target).square() + 0.25).sqrt() - 0.5).sum().backward()  # the loss of the paper, elementwise
    torch.testing.assert_close(gradient, point.grad)
    wide, plain = (
        matching_gradient(image, real, fake, **level, huber=1e4)[0],
        matching_gradient(image, real, fake, **level),
    )
    torch.testing.assert_close(1e4 * wide, plain[0], rtol=1e-5, atol=1e-5)
    logs = [train(trainer(section(method={"huber": huber})), 0, 2) for huber in (None, 1e-3)]
    assert logs[0][0]["loss/matching"] != logs[1][0]["loss/matching"] and logs[0][0]["loss/fake"] != 0


def test_passes_of_an_update_are_those_of_the_algorithm():
    """G 3, teacher 1 and fake 1, then fake 3; before the trained call a mean of (calls - 1) / 2 without gradient."""
    found = measured_steps(trainer(section()), {"noise": NoiseStream(FACTS)}, draws=200)
    student, carried, fresh = (next(iter(step.parts.values())).passes for step in found)
    assert {role: student[role] for role in ("teacher", "fake")} == {"teacher": 1, "fake": 1}
    assert student["student"] == pytest.approx(3 + 1, abs=0.2) and carried == {"fake": 3}
    assert fresh["student"] == pytest.approx(1 + 1, abs=0.2) and fresh["fake"] == 3


def test_file_is_a_student_of_all_calls_only(tmp_path):
    method = section().method
    assert method.final_calls() == 3 and set(method.calls_kept()) == {3} and method.reads() == frozenset()
    facts = {"calls": method_of().sampling().facts()}
    assert loading.student_calls(facts, tmp_path, calls=3).between == "ode"
    with pytest.raises(ValueError, match="is no student of 2 calls, but of 3"):
        loading.student_calls(facts, tmp_path, calls=2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"calls": 2}, "times.sigmas: 3 noise levels for calls 2"),
        ({"huber": 0.0}, "huber"),
        ({"phases": [{"updates": 1, "fake_updates": 0}]}, "greater than or equal to 1"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        section(method=keys)
