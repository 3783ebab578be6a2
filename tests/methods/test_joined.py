"""x_ref joins the matching batch; guidance of the real score; noise levels of a phase."""

import pytest
import torch

from dmd.config.methods.dmd import Dmd
from dmd.methods.base import Facts, Rows
from dmd.methods.parts.matching import matching_gradient
from dmd.models.guidance import with_guidance
from dmd.sampling.noise import training_sigmas
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import update_generator
from tests.methods.test_dmd import STUDENT, UNET, generate, modules, network
from tests.trainings import WHOLE, FixedRows, Updates, changed, weights

NUM, REGRESSED = 6, 4


def batch() -> dict[str, Rows]:
    random = torch.Generator().manual_seed(9)
    noise, other = (torch.randn(num, 1, 4, 4, generator=random) for num in (NUM, REGRESSED))
    label, theirs = (torch.randint(3, (num,), generator=random) for num in (NUM, REGRESSED))
    image = torch.randn(other.shape, generator=random)
    return {"noise": {"noise": noise, "label": label}, "pairs": {"noise": other, "label": theirs, "image": image}}


def distillation(section: dict, split: BatchSplit = WHOLE, *, parts: dict | None = None, **keys) -> Updates:
    given = {"matching_batch_size": NUM, "regression_batch_size": REGRESSED, "phases": [{"updates": 10}]}
    given |= {"schedule": {"warmup": 0, "decay": "constant"}}
    streams = {name: FixedRows(rows) for name, rows in batch().items()}
    return Updates(changed(section, **given | keys), parts or modules(UNET), Facts((1, 4, 4), 3, 0.5), streams, split)


def joined_rows() -> Rows:
    given = batch()
    return {name: torch.cat([given["noise"][name], given["pairs"][name]]) for name in ("noise", "label")}


def drawn(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise levels and noise of an update's matching batch."""
    random = update_generator("distill", 0, 0)
    index = torch.randint(20, 981, (num,), generator=random)
    sigma = training_sigmas(1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)[index]
    return sigma, torch.randn(num, 1, 4, 4, generator=random)


def test_gradient_of_the_joined_batch_is_that_of_both_closed_forms(distill_section):
    """Eq. 7 on all ten images, a mean over all; the regression loss on the last four, through the same pass."""
    found, rows, reference = distillation(distill_section, match_pairs=True), joined_rows(), batch()["pairs"]["image"]
    image, label = generate(found, rows), rows["label"]
    sigma, noise = drawn(NUM + REGRESSED)
    noised = image.detach() + sigma[:, None, None, None] * noise
    with torch.no_grad():
        estimates = found["teacher"](noised, sigma, label), found["fake"](noised, sigma, label)
    slope, _ = matching_gradient(image.detach(), *estimates, alpha=torch.ones(len(image)), sigma=sigma)
    slope = slope / image.numel()
    error = 2 * (image.detach()[NUM:] - reference) / reference.numel()
    slope[NUM:] += 0.25 * error
    parameters = list(found["student"].parameters())
    expected = torch.autograd.grad(image, parameters, slope, allow_unused=True)
    calls, seen = [], []
    found["student"].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    found["fake"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    found.trainer.networks.optimisers["student"].adamw.zero_grad = lambda *_: None  # the gradient is looked at
    row = found.update(0, STUDENT)
    assert calls == [NUM, REGRESSED]  # x_ref is generated once
    torch.testing.assert_close(torch.cat(seen), noised)
    for parameter, one in zip(parameters, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(parameter.grad, one, rtol=1e-4, atol=1e-7)
    norm = sum(one.square().sum() for one in expected if one is not None).sqrt()
    assert row["gradient_norm/student"] == pytest.approx(float(norm), rel=1e-4)
    assert row["generated/std"] == pytest.approx(float(image.detach().std()), rel=1e-5)


@pytest.mark.parametrize("shared_noise", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_micro_batches_add_up_to_the_joined_batch(distill_section, micro_batch_size, shared_noise):
    rows, after, keys = [], [], {"match_pairs": True, "shared_noise": shared_noise}
    for split in (WHOLE, BatchSplit(micro_batch_size=micro_batch_size)):
        found, seen = distillation(distill_section, split, **keys), []
        found["fake"].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        for update in range(2):
            row = found.update(update)
        assert sum(seen) == 2 * (NUM + REGRESSED) * (1 if shared_noise else 2)
        rows.append(row)
        after.append(torch.cat([weights(found["student"]), weights(found["fake"])]))
    assert rows[1] == pytest.approx(rows[0], rel=2e-3, abs=1e-5, nan_ok=True)
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_fake_loss_of_the_joined_batch_sees_every_image_with_its_label(distill_section, micro_batch_size):
    """Rows that go on keep their images, labels and cut; only levels and noise are drawn anew."""
    split = BatchSplit(micro_batch_size=micro_batch_size)
    found, rows, seen = distillation(distill_section, split, match_pairs=True), joined_rows(), []
    with torch.no_grad():
        image = generate(found, rows)
    found["fake"].register_forward_hook(lambda module, inputs, output: seen.append([*inputs, torch.is_grad_enabled()]))
    steps = found.steps(0)
    found.trainer.update(found.clock(0), steps)
    cut = [NUM, REGRESSED] if micro_batch_size is None else [4, 2, 4]
    scored, taught = ([each for each in seen if each[3] == taught] for taught in (False, True))
    table = found.trainer.method.table.sigmas
    for passes, prepared in zip((scored, taught), steps, strict=True):
        assert [len(each[0]) for each in passes] == cut
        noised, sigma, label = (torch.cat([each[place] for each in passes]) for place in range(3))
        drawn = prepared.rows.values()
        level, noise = (torch.cat([part[name] for part in drawn]) for name in ("level", "level_noise"))
        assert torch.equal(label, rows["label"]) and torch.equal(sigma, table[level])
        torch.testing.assert_close(noised, image + table[level][:, None, None, None] * noise)
    assert not torch.equal(scored[0][1], taught[0][1])


def test_pairs_do_not_join_where_the_phase_has_no_regression(distill_section):
    phases = [{"updates": 1, "regression_scale": 0.0}, {"updates": 1}]
    found, seen = [distillation(distill_section, phases=phases, match_pairs=joins) for joins in (True, False)], []
    for one in found:
        one["student"].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        one.update(0)
    assert [len(each) for each in seen] == [NUM, NUM] and torch.equal(*seen)
    assert torch.equal(weights(found[0]["student"]), weights(found[1]["student"]))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_real_score_is_guided_and_the_fake_one_never(distill_section, guidance):
    plain, empty = network(UNET, 0).requires_grad_(False).eval(), torch.tensor(2)
    teacher = with_guidance(network(UNET, 0), empty, guidance)
    found, given = distillation(distill_section, parts=modules(UNET, teacher=teacher)), batch()["noise"]
    image, label = generate(found, given).detach(), given["label"]
    sigma, noise = drawn(NUM)
    noised = image + sigma[:, None, None, None] * noise
    with torch.no_grad():
        without, asked = (plain(noised, sigma, each) for each in (torch.full_like(label, 2), label))
        real, fake = without + guidance * (asked - without), found["fake"](noised, sigma, label)
    gradient, factor = matching_gradient(image, real, fake, alpha=torch.ones(NUM), sigma=sigma)
    row = found.update(0, STUDENT)
    assert row["matching/factor"] == pytest.approx(float(factor.mean()), rel=1e-4)
    assert row["loss/matching"] == pytest.approx(float(0.5 * gradient.square().mean()), rel=1e-3)
    roles = Dmd(name="dmd", guidance=guidance).roles()
    assert {role: each.guidance for role, each in roles.items()} == {"teacher": guidance, "student": 1.0, "fake": 1.0}


def test_a_phase_may_end_the_noise_levels_earlier(distill_section):
    phases = [{"updates": 1, "max_index": 300}]
    found = [
        distillation(distill_section, phases=phases),
        distillation(distill_section, levels={"max_index": 300}),
        distillation(distill_section),
    ]
    for each in found:
        each.update(0, STUDENT)
    students = [weights(each["student"]) for each in found]
    assert torch.equal(students[0], students[1]) and not torch.equal(students[2], students[0])
