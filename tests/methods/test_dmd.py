"""One update of Algorithm 1: gradients of whole networks, shared noise, averages, what is left alone."""

import copy

import pytest
import torch

from dmd.diffusion.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.diffusion.noise import training_sigmas
from dmd.diffusion.objective import denoising_loss
from dmd.methods.dmd import Distillation
from dmd.methods.matching import matching_gradient
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from dmd.networks import build

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}
UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3, "dropout": 0.5}
PHASE = {"matching_scale": 1.0, "regression_scale": 1.0}
NUM = 6
WHOLE = Share()


def network(architecture: dict, seed: int) -> Denoiser:
    """Random weights everywhere, the layers that start at zero too."""
    denoiser = Denoiser(build(architecture), sigma_data=0.5)
    generator = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def distillation(numbers: dict, architecture: dict = MLP, share: Share = WHOLE, **changed) -> Distillation:
    parts = [network(architecture, seed) for seed in range(3)]
    teacher = parts[0].requires_grad_(False).eval()
    return Distillation(teacher, parts[1], parts[2], numbers | changed, l2_distance, share)


def batch(architecture: dict = MLP, *, pairs: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(9)
    shape = (NUM, architecture["channels"], architecture["resolution"], architecture["resolution"])
    noise, other, image = torch.randn(3, *shape, generator=generator).unbind()
    classes = architecture["num_classes"]
    label = torch.randint(classes, (NUM,), generator=generator) if classes else torch.full((NUM,), -1)
    return Batch(noise, label, (other, label.flip(0), image) if pairs else None)


def weights(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()]).clone()


def noised_batch(image: torch.Tensor, seed: int, levels: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What an update draws from its generator: indices, then noise."""
    random = update_generator("distill", seed, 0)
    index = torch.randint(*levels, (NUM,), generator=random)
    sigma = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)[index]
    return image + sigma[:, None, None, None] * torch.randn(image.shape, generator=random), sigma


@pytest.mark.parametrize("architecture", [MLP, UNET])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_generator_gradient_is_the_weighted_sum_of_both_losses_closed_forms(distill_numbers, architecture, scale):
    found = distillation(distill_numbers, architecture)
    given = batch(architecture)
    image = found.generate(given.noise, given.label)
    noised, sigma = noised_batch(image.detach(), 0, (20, 981))
    with torch.no_grad():
        estimates = found.teacher(noised, sigma, given.label), found.fake(noised, sigma, given.label)
    gradient, _ = matching_gradient(image.detach(), *estimates, alpha=torch.ones(NUM), sigma=sigma)
    parameters = list(found.generator.parameters())
    matching = torch.autograd.grad(image, parameters, scale * gradient / image.numel(), allow_unused=True)
    other, label, reference = given.pairs
    regressed = found.generate(other, label)
    error = 0.25 * scale * 2 * (regressed.detach() - reference) / image.numel()
    regression = torch.autograd.grad(regressed, parameters, error, allow_unused=True)
    norm = sum((a + b).square().sum() for a, b in zip(matching, regression, strict=True) if a is not None).sqrt()
    phase = {"matching_scale": scale, "regression_scale": scale}
    generated, row = found.generator_update(given, phase, update_generator("distill", 0, 0))
    assert float(row["generator_gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    torch.testing.assert_close(generated, image.detach())
    assert not generated.requires_grad


def test_generator_is_the_denoiser_at_a_constant_noise_level(distill_numbers):
    found, given = distillation(distill_numbers, sigma=3.0), batch()
    expected = found.generator(3.0 * given.noise, torch.full((NUM,), 3.0), given.label)
    assert torch.equal(found.generate(given.noise, given.label), expected)


def test_matching_indices_stay_in_their_range_and_fake_ones_cover_the_table(distill_numbers):
    levels = distill_numbers["levels"] | {"min_index": 500, "max_index": 599}
    found = distillation(distill_numbers, levels=levels)
    seen = []
    found.fake.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    table = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    for update in range(40):
        image, row = found.generator_update(batch(), PHASE, update_generator("distill", 0, update))
        assert [name for name, value in row.items() if name.startswith("gap") and value.isfinite()] == ["gap_bin5"]
        found.fake_update(image, batch().label, update_generator("distill", 1, update))
    matching, fake = torch.cat(seen[::2]), torch.cat(seen[1::2])
    assert table[500] <= matching.min() and matching.max() <= table[599]
    assert fake.min() < table[100] and fake.max() > table[900]


@pytest.mark.parametrize("alpha_factor", [False, True])
def test_levels_of_a_teacher_give_their_alpha_to_the_weighting(distill_numbers, alpha_factor):
    squares = torch.linspace(0.999, 0.01, 40, dtype=torch.float64)
    discrete = {"kind": "discrete", "alphas_cumprod": squares.tolist(), "prediction": "v"}
    parts = [network(MLP, seed) for seed in range(3)]
    parts = [Denoiser(part.network, sigma_data=1.0, preconditioning=discrete) for part in parts]
    levels = {"kind": "teacher", "min_index": 30, "max_index": 30}
    numbers = distill_numbers | {"levels": levels, "weighting": "sigma/alpha", "alpha_factor": alpha_factor}
    numbers |= {"sigma": float(((1 - squares[-1]) / squares[-1]).sqrt())}
    found = Distillation(parts[0].requires_grad_(False), parts[1], parts[2], numbers, l2_distance)
    _, row = found.generator_update(batch(), PHASE, update_generator("distill", 0, 0))
    alpha, sigma_t = squares[30].sqrt(), (1 - squares[30]).sqrt()
    expected = alpha / sigma_t if alpha_factor else 1 / sigma_t
    assert float(row["matching_factor"]) == pytest.approx(float(expected), rel=1e-5)
    assert [name for name, value in row.items() if name.startswith("gap") and value.isfinite()] == ["gap_bin7"]


def test_an_update_of_one_network_leaves_the_others_alone(distill_numbers):
    found, given = distillation(distill_numbers, UNET), batch(UNET)
    before = [weights(part) for part in (found.teacher, found.generator, found.fake)]
    image, _ = found.generator_update(given, PHASE, update_generator("distill", 0, 0))
    assert torch.equal(weights(found.teacher), before[0]) and torch.equal(weights(found.fake), before[2])
    generator = weights(found.generator)
    assert not torch.equal(generator, before[1])
    found.fake_update(image, given.label, update_generator("distill", 0, 1))
    assert torch.equal(weights(found.generator), generator) and not torch.equal(weights(found.fake), before[2])
    assert not any(module.training for part in (found.generator, found.fake) for module in part.modules())


@pytest.mark.parametrize("architecture", [MLP, UNET])
def test_shared_noise_keeps_the_generator_update_and_leaves_the_fake_gradient(distill_numbers, architecture):
    apart, shared = (distillation(distill_numbers, architecture, shared_noise=value) for value in (False, True))
    given = batch(architecture)
    image, _ = apart.generator_update(given, PHASE, update_generator("distill", 0, 0))
    same, row = shared.generator_update(given, PHASE, update_generator("distill", 0, 0))
    assert torch.equal(image, same)
    torch.testing.assert_close(weights(shared.generator), weights(apart.generator), rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in apart.fake.parameters())
    noised, sigma = noised_batch(image, 0, (20, 981))
    loss = denoising_loss(apart.fake(noised, sigma, given.label), image, weight=1 / sigma.square() + 1 / 0.5**2)
    loss.backward()
    torch.testing.assert_close(row["fake_loss"], loss.detach())
    for mine, expected in zip(shared.fake.parameters(), apart.fake.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)
    shared.fake_update(same, given.label, update_generator("distill", 0, 1), has_gradient=True)
    apart.fake_optimiser.adamw.step()
    torch.testing.assert_close(weights(shared.fake), weights(apart.fake), rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in shared.fake.parameters())


def test_real_score_only_pulls_towards_the_teacher_and_never_asks_the_fake(distill_numbers):
    found = distillation(distill_numbers, fake_score=False)
    found.teacher = GaussianMixtureDenoiser(torch.full((1, 2, 1, 1), 5.0), torch.tensor([0.1]), torch.ones(1))
    found.fake.register_forward_pre_hook(lambda *_: pytest.fail("the fake denoiser was called"))
    given = batch(pairs=False)
    before = (found.generate(given.noise, given.label) - 5.0).abs().mean()
    for update in range(30):
        found.generator_update(given, PHASE, update_generator("distill", 0, update))
    assert (found.generate(given.noise, given.label) - 5.0).abs().mean() < before - 0.1


def test_non_finite_samples_are_counted_and_teach_nothing(distill_numbers):
    class Broken(GaussianMixtureDenoiser):
        def forward(self, image, sigma, label):
            x0 = super().forward(image, sigma, label)
            x0[2] = torch.nan
            x0[4] = torch.inf
            return x0

    found = distillation(distill_numbers)
    found.teacher = Broken(torch.zeros(1, 2, 1, 1), torch.ones(1), torch.ones(1))
    _, row = found.generator_update(batch(pairs=False), PHASE, update_generator("distill", 0, 0))
    assert row["nonfinite_samples"] == 2
    assert row["matching_factor"].isfinite() and row["generator_gradient_norm"].isfinite()
    assert weights(found.generator).isfinite().all()


@pytest.mark.parametrize("name", ["matching", "regression"])
def test_a_loss_of_weight_zero_is_not_computed(distill_numbers, name):
    found = distillation(distill_numbers, **{f"{name}_weight": 0.0})
    image, row = found.generator_update(batch(), PHASE, update_generator("distill", 0, 0))
    assert f"{name}_loss" not in row and len(row) > 1
    assert (len(image) == 0) == (name == "matching")


def test_fixed_images_of_compiled_networks_come_in_the_shape_of_the_training(distill_numbers):
    """Compiling for another shape takes minutes, in which other processes wait."""
    found, given, seen = distillation(distill_numbers, compute={"compile": True}), batch(), []
    expected = found.generate(given.noise, given.label)
    found.generator.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    torch.testing.assert_close(found.generate_all(given.noise, given.label), expected)
    assert seen == [distill_numbers["matching_batch_size"]] * 2 == [4, 4]


def test_average_equals_its_closed_form(distill_numbers):
    found, decay, seen = distillation(distill_numbers, ema_decay=0.7), 0.7, []
    for update in range(5):
        found.generator_update(batch(), PHASE, update_generator("distill", 0, update))
        seen.append(weights(found.generator))
    expected = decay**4 * seen[0] + sum((1 - decay) * decay ** (4 - place) * seen[place] for place in range(1, 5))
    average = torch.cat([parameter.flatten() for parameter in found.average.module.parameters()])
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average, seen[-1])


def test_learning_rates_scale_together(distill_numbers):
    optimiser = distill_numbers["optimiser"]
    found = distillation(distill_numbers, optimiser=optimiser | {"fake_learning_rate": 4.0e-3})
    found.set_learning_rate(0.25)
    rates = [part.adamw.param_groups[0]["lr"] for part in (found.generator_optimiser, found.fake_optimiser)]
    assert rates == pytest.approx([0.25e-3, 1e-3])
    same = distillation(copy.deepcopy(distill_numbers))
    same.set_learning_rate(0.5)
    assert same.fake_optimiser.adamw.param_groups[0]["lr"] == pytest.approx(0.5e-3)


def test_gradients_are_clipped_to_the_given_norm(distill_numbers):
    optimiser = distill_numbers["optimiser"] | {"gradient_clip": 1e-3}
    found = distillation(distill_numbers, optimiser=optimiser)
    _, row = found.generator_update(batch(), PHASE, update_generator("distill", 0, 0))
    moment = [state["exp_avg"].flatten() for state in found.generator_optimiser.adamw.state.values()]
    assert float(row["generator_gradient_norm"]) > 1e-3
    assert float(torch.cat(moment).norm() / 0.1) == pytest.approx(1e-3, rel=1e-3)  # first moment is (1 - beta1) g


@pytest.mark.parametrize("shared_noise", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 6])
def test_micro_batches_add_up_to_the_batch(distill_numbers, micro_batch_size, shared_noise):
    """Six images in parts of 4 and 2, too; the clip of the norm and the log see the whole batch."""
    optimiser = distill_numbers["optimiser"] | {"gradient_clip": 1e-2}
    rows, after, numbers = [], [], {"shared_noise": shared_noise, "optimiser": optimiser}
    for share in (Share(), Share(micro_batch_size=micro_batch_size)):
        found = distillation(distill_numbers, UNET, share, **numbers)
        sizes = []
        found.generator.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
        for update in range(3):
            image, row = found.generator_update(batch(UNET), PHASE, update_generator("distill", 0, update))
            second = update_generator("distill", 1, update)
            row |= found.fake_update(image, batch(UNET).label, second, has_gradient=shared_noise)
        rows.append(torch.stack(list(row.values())))
        after.append(torch.cat([weights(found.generator), weights(found.fake)]))
    assert sizes == {1: [1] * 36, 4: [4, 2] * 6, 6: [6] * 6}[micro_batch_size]
    torch.testing.assert_close(rows[1], rows[0], rtol=2e-3, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=2e-5)
    assert list(row) and "fake_loss" in row and row["generator_gradient_norm"] > 1e-2


def test_shares_of_all_processes_make_the_batch():
    for num, processes, size in ((7, 3, 2), (6, 2, None), (5, 5, 9)):
        found = [Share(rank, processes, size).slices(num) for rank in range(processes)]
        assert [place for slices in found for part in slices for place in range(num)[part]] == list(range(num))
        assert all(part.stop - part.start <= (size or num) for slices in found for part in slices)
    with pytest.raises(ValueError, match="2 images cannot be shared among 3 processes"):
        Share(0, 3).slices(2)
