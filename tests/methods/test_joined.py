"""x_ref joins the matching batch; guidance of the real score; noise levels of a phase."""

import pytest
import torch

from dmd.diffusion.guidance import guided
from dmd.diffusion.noise import training_sigmas
from dmd.methods.dmd import Distillation
from dmd.methods.matching import matching_gradient
from dmd.methods.numbers import Batch, Joined, Rows
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from tests.methods.test_dmd import PHASE, UNET, distillation, network, noised_batch, weights

NUM, REGRESSED = 6, 4


def batch() -> Batch:
    random = torch.Generator().manual_seed(9)
    noise, other = (torch.randn(num, 1, 4, 4, generator=random) for num in (NUM, REGRESSED))
    label, theirs = (torch.randint(3, (num,), generator=random) for num in (NUM, REGRESSED))
    return Batch(noise, label, (other, theirs, torch.randn(other.shape, generator=random)))


def joined_images(found: Distillation, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    noise, label = torch.cat([given.noise, given.pairs[0]]), torch.cat([given.label, given.pairs[1]])
    return found.generate(noise, label), label


def drawn(num: int, stop: int = 981) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise levels and noise of an update's matching batch."""
    random = update_generator("distill", 0, 0)
    index = torch.randint(20, stop, (num,), generator=random)
    sigma = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)[index]
    return sigma, torch.randn(num, 1, 4, 4, generator=random)


def test_gradient_of_the_joined_batch_is_that_of_both_closed_forms(distill_numbers):
    """Eq. 7 on all ten images, a mean over all; the regression loss on the last four, through the same pass."""
    found, given = distillation(distill_numbers, UNET, match_pairs=True), batch()
    image, label = joined_images(found, given)
    sigma, noise = drawn(NUM + REGRESSED)
    noised = image.detach() + sigma[:, None, None, None] * noise
    with torch.no_grad():
        estimates = found.teacher(noised, sigma, label), found.fake(noised, sigma, label)
    slope, _ = matching_gradient(image.detach(), *estimates, alpha=torch.ones(len(image)), sigma=sigma)
    slope = slope / image.numel()
    error = 2 * (image.detach()[NUM:] - given.pairs[2]) / given.pairs[2].numel()
    slope[NUM:] += 0.25 * error
    parameters = list(found.generator.parameters())
    expected = torch.autograd.grad(image, parameters, slope, allow_unused=True)
    calls = []
    found.generator.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    found.generator_optimiser.adamw.zero_grad = lambda *_: None  # the gradient stays to be looked at
    seen, row = found.generator_update(given, PHASE, update_generator("distill", 0, 0))
    assert calls == [NUM, REGRESSED]  # x_ref is generated once
    torch.testing.assert_close(seen, image.detach())
    for parameter, one in zip(parameters, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(parameter.grad, one, rtol=1e-4, atol=1e-7)
    norm = sum(one.square().sum() for one in expected if one is not None).sqrt()
    assert float(row["generator_gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    assert float(row["generated_std"]) == pytest.approx(float(image.detach().std()), rel=1e-5)


@pytest.mark.parametrize("shared_noise", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_micro_batches_add_up_to_the_joined_batch(distill_numbers, micro_batch_size, shared_noise):
    rows, after, numbers = [], [], {"match_pairs": True, "shared_noise": shared_noise}
    for share in (Share(), Share(micro_batch_size=micro_batch_size)):
        found, given = distillation(distill_numbers, UNET, share, **numbers), batch()
        for update in range(2):
            image, row = found.generator_update(given, PHASE, update_generator("distill", 0, update))
            assert len(image) == len(given.joined_label) == NUM + REGRESSED
            second = update_generator("distill", 1, update)
            row |= found.fake_update(image, given.joined_label, second, has_gradient=shared_noise)
        rows.append(torch.stack(list(row.values())))
        after.append(torch.cat([weights(found.generator), weights(found.fake)]))
    torch.testing.assert_close(rows[1], rows[0], rtol=2e-3, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=2e-5)


def test_fake_loss_of_the_joined_batch_sees_every_image_with_its_label(distill_numbers):
    found, given, seen = distillation(distill_numbers, UNET, match_pairs=True), batch(), []
    image, label = joined_images(found, given)
    found.fake.register_forward_hook(lambda module, inputs, output: seen.append((inputs[2], len(inputs[0]))))
    found.fake_update(image.detach(), given.joined_label, update_generator("distill", 1, 0))
    assert [num for _, num in seen] == [NUM, REGRESSED] and torch.equal(torch.cat([each for each, _ in seen]), label)


def test_joined_rows_are_those_of_both_batches():
    rows = Joined(torch.arange(5), Rows(torch.tensor([12, 13]), 2, 6))
    assert len(rows) == 11 and rows[1:3].tolist() == [1, 2] and rows[7:9].tolist() == [12, 13]
    with pytest.raises(ValueError, match=r"rows 0 \.\. 1 wanted, here are 2 \.\. 3"):
        rows[5:7]
    found = [Share(rank, 2, 2).slices(6, behind=5) for rank in range(2)]
    assert found == [[slice(5, 7), slice(7, 8)], [slice(8, 10), slice(10, 11)]]


def test_pairs_do_not_join_where_the_phase_has_no_regression(distill_numbers):
    found, phase = distillation(distill_numbers, UNET, match_pairs=True), PHASE | {"regression_scale": 0.0}
    apart = distillation(distill_numbers, UNET)
    images = [part.generator_update(batch(), phase, update_generator("distill", 0, 0))[0] for part in (found, apart)]
    assert torch.equal(*images) and len(images[0]) == NUM
    assert torch.equal(weights(found.generator), weights(apart.generator))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_real_score_is_guided_and_the_fake_one_never(distill_numbers, guidance):
    found, given = distillation(distill_numbers, UNET), batch()
    plain, empty = network(UNET, 0).requires_grad_(False).eval(), torch.tensor(2)
    found.teacher = guided(found.teacher, empty, guidance)
    image = found.generate(given.noise, given.label).detach()
    noised, sigma = noised_batch(image, 0, (20, 981))
    with torch.no_grad():
        without, asked = (plain(noised, sigma, each) for each in (torch.full_like(given.label, 2), given.label))
        real, fake = without + guidance * (asked - without), found.fake(noised, sigma, given.label)
    gradient, factor = matching_gradient(image, real, fake, alpha=torch.ones(NUM), sigma=sigma)
    _, row = found.generator_update(given, PHASE, update_generator("distill", 0, 0))
    assert float(row["matching_factor"]) == pytest.approx(float(factor.mean()), rel=1e-4)
    expected = 0.5 * gradient.square().mean()
    assert float(row["matching_loss"]) == pytest.approx(float(expected), rel=1e-3)


def test_a_phase_may_end_the_noise_levels_earlier(distill_numbers):
    levels = distill_numbers["levels"] | {"max_index": 300}
    found = distillation(distill_numbers, UNET), distillation(distill_numbers, UNET, levels=levels)
    phases = PHASE | {"max_index": 300}, PHASE
    for one, phase in zip(found, phases, strict=True):
        one.generator_update(batch(), phase, update_generator("distill", 0, 0))
    assert torch.equal(weights(found[0].generator), weights(found[1].generator))
    other = distillation(distill_numbers, UNET)
    other.generator_update(batch(), PHASE, update_generator("distill", 0, 0))
    assert not torch.equal(weights(other.generator), weights(found[0].generator))
