"""The noise table, and noise that depends on its own seed alone."""

import pytest
import torch

from dmd.sampling import noise

PAPER = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


@pytest.mark.parametrize(
    ("index", "sigma"),
    [(20, "0.0032"), (100, "0.0168"), (250, "0.170"), (400, "0.969"), (500, "2.527"), (600, "5.87")]
    + [(750, "17.6"), (900, "45.6"), (980, "72.05"), (0, "0.002"), (999, "80.0")],
)
def test_training_table_has_the_check_points_of_the_paper(index, sigma):
    digits = len(sigma.partition(".")[2])
    assert float(noise.training_sigmas(1000, **PAPER)[index]) == pytest.approx(float(sigma), abs=0.51 * 10**-digits)


def test_karras_grid_descends_evenly_in_the_root_between_its_exact_ends():
    sigmas = noise.karras_sigmas(18, **PAPER)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (18,)
    assert float(sigmas[0]) == pytest.approx(80, rel=1e-12)
    assert float(sigmas[-1]) == pytest.approx(0.002, rel=1e-12)
    steps = (sigmas ** (1 / 7)).diff()
    assert (steps < 0).all()
    torch.testing.assert_close(steps, steps.mean().expand(17))


def test_sampling_grid_ends_in_zero_and_one_level_is_sigma_max():
    assert noise.sampling_sigmas(1, **PAPER).tolist() == pytest.approx([80.0, 0.0])
    assert noise.sampling_sigmas(5, **PAPER)[-1] == 0


@pytest.mark.parametrize(("num", "low", "high"), [(0, 0.002, 80.0), (4, 0.0, 80.0), (4, 2.0, 1.0)])
def test_karras_grid_refuses_an_impossible_range(num, low, high):
    with pytest.raises(ValueError, match=f"got {num}, {low}, {high}"):
        noise.karras_sigmas(num, sigma_min=low, sigma_max=high, rho=7.0)


def test_training_levels_are_log_normal():
    logs = noise.log_normal_sigmas(20000, mean=-1.2, std=1.2, generator=torch.Generator().manual_seed(0)).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.03)


def test_seeded_noise_does_not_depend_on_the_batch():
    shape, first = (3, 4, 4), 2**31
    together = noise.seeded_noise(range(first, first + 7), shape, num_classes=10)
    for place, seed in enumerate(range(first, first + 7)):
        alone = noise.seeded_noise([seed], shape, num_classes=10)
        assert torch.equal(together[0][place], alone[0][0]) and together[1][place] == alone[1][0]
    assert len(together[0].flatten(1).unique(dim=0)) == 7


def test_seeded_item_draws_its_noise_first_and_then_its_label():
    generator = torch.Generator().manual_seed(5)
    expected = torch.randn(2, 3, 3, generator=generator), torch.randint(10, (), generator=generator)
    found, label = noise.seeded_noise([5], (2, 3, 3), num_classes=10)
    assert torch.equal(found[0], expected[0]) and label.tolist() == [int(expected[1])]
    assert found.dtype == torch.float32 and label.dtype == torch.int64


def test_label_policy_leaves_the_noise_alone():
    seeds = range(20)
    random, random_label = noise.seeded_noise(seeds, (1, 2, 2), num_classes=4)
    balanced, balanced_label = noise.seeded_noise(seeds, (1, 2, 2), num_classes=4, labels="balanced")
    none, no_label = noise.seeded_noise(seeds, (1, 2, 2), num_classes=0)
    assert torch.equal(random, balanced) and torch.equal(random, none)
    assert balanced_label.bincount().tolist() == [5] * 4 and random_label.unique().tolist() == [0, 1, 2, 3]
    assert no_label.tolist() == [-1] * 20


def test_seeded_noise_refuses_an_unknown_label_policy():
    with pytest.raises(ValueError, match="'even'"):
        noise.seeded_noise([0], (1, 1, 1), num_classes=2, labels="even")
