"""One update of Algorithm 1: gradients of whole networks, shared noise, averages, what is left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dmd.methods.base import Facts, Rows
from dmd.methods.parts.denoising_loss import denoising_loss
from dmd.methods.parts.matching import matching_gradient
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from dmd.sampling.noise import training_sigmas
from dmd.train.checkpoints import check_finite
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import update_generator
from dmd.train.training_grid import Grid
from tests.trainings import WHOLE, FixedRows, Updates, changed, weights

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}
UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3, "dropout": 0.5}
NUM = 6
STUDENT, FAKE = slice(0, 1), slice(1, 2)  # steps of an update


def network(architecture: dict, seed: int) -> Denoiser:
    """Random weights everywhere, the layers that start at zero too."""
    denoiser = Denoiser(build(architecture), sigma_data=0.5)
    generator = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def modules(architecture: dict = MLP, **others: nn.Module) -> dict[str, nn.Module]:
    made = {role: network(architecture, seed) for seed, role in enumerate(("teacher", "student", "fake"))}
    return made | others


def batch(architecture: dict = MLP) -> dict[str, Rows]:
    """Rows of both streams."""
    generator = torch.Generator().manual_seed(9)
    shape = (NUM, architecture["channels"], architecture["resolution"], architecture["resolution"])
    noise, other, image = torch.randn(3, *shape, generator=generator).unbind()
    classes = architecture["num_classes"]
    label = torch.randint(classes, (NUM,), generator=generator) if classes else torch.full((NUM,), -1)
    return {
        "noise": {"noise": noise, "label": label},
        "pairs": {"noise": other, "label": label.flip(0), "image": image},
    }


def distillation(
    section: dict, architecture: dict = MLP, split: BatchSplit = WHOLE, *, parts: dict | None = None, **keys
) -> Updates:
    """A distillation on `batch` at a constant rate, with one fake update; `parts` are its networks."""
    given = {"matching_batch_size": NUM, "regression_batch_size": NUM, "phases": [{"updates": 100}]}
    given |= {"schedule": {"warmup": 0, "decay": "constant"}}
    side = architecture["resolution"]
    facts = Facts((architecture["channels"], side, side), architecture["num_classes"], 0.5)
    streams = {name: FixedRows(rows) for name, rows in batch(architecture).items()}
    return Updates(changed(section, **given | keys), parts or modules(architecture), facts, streams, split)


def generate(found: Updates, rows: Rows) -> torch.Tensor:
    return found.trainer.method.generate(rows)


def finite_gaps(row: dict[str, float]) -> list[str]:
    return [name for name, value in row.items() if "gap" in name and value == value]


def noised_batch(image: torch.Tensor, levels: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What update 0 draws first: indices, then noise."""
    random = update_generator("distill", 0, 0)
    index = torch.randint(*levels, (NUM,), generator=random)
    sigma = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)[index]
    return image + sigma[:, None, None, None] * torch.randn(image.shape, generator=random), sigma


@pytest.mark.parametrize("architecture", [MLP, UNET])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_student_gradient_is_the_weighted_sum_of_both_losses_closed_forms(distill_section, architecture, scale):
    phase = {"updates": 1, "matching_scale": scale, "regression_scale": scale}
    found, given = distillation(distill_section, architecture, phases=[phase]), batch(architecture)
    noise, label = given["noise"].values()
    image = generate(found, given["noise"])
    noised, sigma = noised_batch(image.detach(), (20, 981))
    with torch.no_grad():
        estimates = found["teacher"](noised, sigma, label), found["fake"](noised, sigma, label)
    gradient, _ = matching_gradient(image.detach(), *estimates, alpha=torch.ones(NUM), sigma=sigma)
    parameters = list(found["student"].parameters())
    matching = torch.autograd.grad(image, parameters, scale * gradient / image.numel(), allow_unused=True)
    regressed = generate(found, given["pairs"])
    error = 0.25 * scale * 2 * (regressed.detach() - given["pairs"]["image"]) / image.numel()
    regression = torch.autograd.grad(regressed, parameters, error, allow_unused=True)
    norm = sum((a + b).square().sum() for a, b in zip(matching, regression, strict=True) if a is not None).sqrt()
    seen = []
    found["fake"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    row = found.update(0, STUDENT)
    assert row["gradient_norm/student"] == pytest.approx(float(norm), rel=1e-4)
    torch.testing.assert_close(seen, [noised])  # of the images above
    assert not seen[0].requires_grad


def test_student_is_the_denoiser_at_a_constant_noise_level(distill_section):
    found, given = distillation(distill_section, sigma=3.0), batch()["noise"]
    expected = found["student"](3.0 * given["noise"], torch.full((NUM,), 3.0), given["label"])
    assert torch.equal(generate(found, given), expected)
    assert found.trainer.method.sampling().sigmas == (3.0,)


def test_matching_indices_stay_in_their_range_and_fake_ones_cover_the_table(distill_section):
    found = distillation(distill_section, levels={"min_index": 500, "max_index": 599})
    seen = []
    found["fake"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    table = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    for update in range(40):
        assert finite_gaps(found.update(update)) == ["matching/gap5"]
    matching, fake = torch.cat(seen[::2]), torch.cat(seen[1::2])
    assert table[500] <= matching.min() and matching.max() <= table[599]
    assert fake.min() < table[100] and fake.max() > table[900]


@pytest.mark.parametrize("alpha_factor", [False, True])
def test_levels_of_a_teacher_give_their_alpha_to_the_weighting(distill_section, alpha_factor):
    squares = torch.linspace(0.999, 0.01, 40, dtype=torch.float64)
    discrete = {"kind": "discrete", "alphas_cumprod": squares.tolist(), "prediction": "v"}
    parts = {role: Denoiser(part.network, sigma_data=1.0, preconditioning=discrete) for role, part in modules().items()}
    levels = {"kind": "teacher", "min_index": 30, "max_index": 30}
    keys = {"levels": levels, "weighting": "sigma/alpha", "alpha_factor": alpha_factor}
    keys |= {"sigma": float(((1 - squares[-1]) / squares[-1]).sqrt())}
    row = distillation(distill_section, parts=parts, **keys).update(0, STUDENT)
    alpha, sigma_t = squares[30].sqrt(), (1 - squares[30]).sqrt()
    expected = alpha / sigma_t if alpha_factor else 1 / sigma_t
    assert row["matching/factor"] == pytest.approx(float(expected), rel=1e-5)
    assert finite_gaps(row) == ["matching/gap7"]


def test_a_step_of_one_network_leaves_the_others_alone(distill_section):
    phases = [{"updates": 1}, {"updates": 1, "train": "fake"}]
    found = distillation(distill_section, UNET, phases=phases)
    before = {role: weights(found[role]) for role in ("teacher", "student", "fake")}
    found.update(0, STUDENT)
    assert all(torch.equal(weights(found[role]), before[role]) for role in ("teacher", "fake"))
    student = weights(found["student"])
    assert not torch.equal(student, before["student"])
    found.update(1)
    assert torch.equal(weights(found["student"]), student) and not torch.equal(weights(found["fake"]), before["fake"])
    assert not any(module.training for role in ("student", "fake") for module in found[role].modules())
    assert torch.equal(weights(found["teacher"]), before["teacher"])


@pytest.mark.parametrize("architecture", [MLP, UNET])
def test_shared_noise_keeps_the_student_step_and_trains_the_fake_on_the_same_pass(distill_section, architecture):
    apart, shared = (distillation(distill_section, architecture, shared_noise=value) for value in (False, True))
    rows = batch(architecture)["noise"]
    with torch.no_grad():
        image = generate(apart, rows)
    apart.update(0, STUDENT)
    shared.trainer.networks.optimisers["fake"].adamw.zero_grad = lambda *_: None  # the gradient stays to be looked at
    row = shared.update(0)
    torch.testing.assert_close(weights(shared["student"]), weights(apart["student"]), rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in apart["fake"].parameters())
    noised, sigma = noised_batch(image, (20, 981))
    apart["fake"].requires_grad_(True)
    loss = denoising_loss(apart["fake"](noised, sigma, rows["label"]), image, weight=1 / sigma.square() + 1 / 0.5**2)
    loss.backward()
    assert row["loss/fake"] == pytest.approx(loss.item(), rel=1e-5)
    for mine, expected in zip(shared["fake"].parameters(), apart["fake"].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)
    apart.trainer.networks.optimisers["fake"].adamw.step()
    torch.testing.assert_close(weights(shared["fake"]), weights(apart["fake"]), rtol=1e-3, atol=1e-5)
    again = distillation(distill_section, architecture, shared_noise=True)
    again.update(0)
    assert all(parameter.grad is None for parameter in again["fake"].parameters())


def test_real_score_only_pulls_towards_the_teacher_and_never_asks_the_fake(distill_section):
    teacher = GaussianMixtureDenoiser(torch.full((1, 2, 1, 1), 5.0), torch.tensor([0.1]), torch.ones(1))
    keys = {"fake_score": False, "regression_weight": 0.0}
    found = distillation(distill_section, parts=modules(teacher=teacher), **keys)
    found["fake"].register_forward_pre_hook(lambda *_: pytest.fail("the fake denoiser was called"))
    before = (generate(found, batch()["noise"]) - 5.0).abs().mean()
    for update in range(30):
        found.update(update)
    assert (generate(found, batch()["noise"]) - 5.0).abs().mean() < before - 0.1


def test_non_finite_samples_are_counted_and_teach_nothing(distill_section):
    class Broken(GaussianMixtureDenoiser):
        def forward(self, image, sigma, label):
            x0 = super().forward(image, sigma, label)
            x0[2] = torch.nan
            x0[4] = torch.inf
            return x0

    teacher = Broken(torch.zeros(1, 2, 1, 1), torch.ones(1), torch.ones(1))
    found = distillation(distill_section, parts=modules(teacher=teacher), regression_weight=0.0)
    row = found.update(0, STUDENT)
    assert row["matching/nonfinite"] == 2
    check_finite(row, 0, Path(), advice="")  # the training goes on
    assert weights(found["student"]).isfinite().all()


@pytest.mark.parametrize("name", ["matching", "regression"])
def test_a_loss_of_weight_zero_is_not_computed(distill_section, name):
    found = distillation(distill_section, **{f"{name}_weight": 0.0})
    steps = found.steps(0)
    row = found.trainer.update(found.clock(0), steps)
    assert f"loss/{name}" not in row and len(row) > 1
    taken = {"matching": ["pairs"], "regression": ["noise"]}[name]
    assert [part.name for part in steps[0].step.parts] == taken
    assert ("loss/fake" in row) == (len(steps) == 2) == (name == "regression")


def test_fixed_images_of_compiled_networks_come_in_the_shape_of_the_training(distill_section, monkeypatch):
    """Compiling for another shape takes minutes, in which other processes wait."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: compiled(module, backend="eager", **given))
    torch._dynamo.reset()
    plain = Grid(distillation(distill_section).trainer).draw()
    found, seen = distillation(distill_section, compute={"compile": True}), []
    found["student"].register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    torch.testing.assert_close(Grid(found.trainer).draw(), plain)
    assert seen == [NUM] * 11 and plain.shape == (64, 2, 1, 1)


def test_average_equals_its_closed_form(distill_section):
    found, decay, seen = distillation(distill_section, ema_decay=0.7), 0.7, []
    for update in range(5):
        found.update(update)
        seen.append(weights(found["student"]))
    expected = decay**4 * seen[0] + sum((1 - decay) * decay ** (4 - place) * seen[place] for place in range(1, 5))
    average = weights(found.trainer.networks.average.module)
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average, seen[-1])


def test_learning_rates_scale_together(distill_section):
    """Warm-up, decay and the scale of the phase; the fake denoiser has the student's rate unless it names its own."""
    schedule = {"warmup": 4, "decay": "constant"}
    phases = [{"updates": 1}, {"updates": 4, "learning_rate_scale": 0.5}]
    for own, expected in (({"learning_rate": 4.0e-3}, 4.0e-3), ({}, 1.0e-3)):
        found = distillation(distill_section, fake=own, schedule=schedule, phases=phases)
        for update, factor in ((0, 0.25), (1, 0.5 * 0.5), (4, 0.5)):
            found.update(update)
            optimisers = found.trainer.networks.optimisers
            rates = [optimisers[role].adamw.param_groups[0]["lr"] for role in ("student", "fake")]
            assert rates == pytest.approx([factor * 1.0e-3, factor * expected])


def test_gradients_are_clipped_to_the_given_norm(distill_section):
    found = distillation(distill_section, student={"gradient_clip": 1e-3})
    row = found.update(0, STUDENT)
    moment = [value.flatten() for name, value in found.trainer.networks.optimisers["student"].tensors().items()
              if name.endswith("exp_avg")]  # fmt: skip
    assert row["gradient_norm/student"] > 1e-3
    assert float(torch.cat(moment).norm() / 0.1) == pytest.approx(1e-3, rel=1e-3)  # first moment is (1 - beta1) g


@pytest.mark.parametrize("shared_noise", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 6])
def test_micro_batches_add_up_to_the_batch(distill_section, micro_batch_size, shared_noise):
    """Six images in parts of 4 and 2, too; the clip of the norm and the log see the whole batch."""
    rows, after, keys = [], [], {"shared_noise": shared_noise, "student": {"gradient_clip": 1e-2}}
    for split in (WHOLE, BatchSplit(micro_batch_size=micro_batch_size)):
        found = distillation(distill_section, UNET, split, **keys)
        sizes = []
        found["student"].register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
        for update in range(3):
            row = found.update(update)
        rows.append(row)
        after.append(torch.cat([weights(found["student"]), weights(found["fake"])]))
    assert sizes == {1: [1] * 36, 4: [4, 2] * 6, 6: [6] * 6}[micro_batch_size]
    assert rows[1] == pytest.approx(rows[0], rel=2e-3, abs=1e-5, nan_ok=True)
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=2e-5)
    assert "loss/fake" in row and row["gradient_norm/student"] > 1e-2
