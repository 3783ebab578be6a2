"""Students of one and several calls: what lies between the calls, and the boundary of a consistency map."""

import pytest
import torch

from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.models.student_calls import Calls, consistency
from dmd.sampling.noise import seeded_draws, seeded_noise
from dmd.sampling.ode_solvers import euler
from dmd.sampling.solvers import solve

MEAN, STD = 0.3, 0.5


@pytest.fixture
def gaussian() -> GaussianMixtureDenoiser:
    """The exact denoiser of N(.3, .5^2), one number an image."""
    found = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.tensor([1.0]))
    found.sigma_data = STD
    return found


def test_one_call_is_the_denoiser_at_its_level(gaussian):
    noise, label = torch.randn(3, 1, 1, 1), torch.full((3,), -1)
    image, num_calls = solve(gaussian, noise, label, {"name": "student", "calls": Calls((80.0,)).facts()})
    assert torch.equal(image, gaussian(80.0 * noise, torch.full((3,), 80.0), label)) and num_calls == 1


def test_calls_along_the_ode_are_eulers_steps(gaussian):
    noise, label, sigmas = torch.randn(4, 1, 1, 1).double(), torch.full((4,), -1), (80.0, 9.0, 2.0)
    image, num_calls = solve(gaussian, noise, label, {"name": "student", "calls": Calls(sigmas, between="ode").facts()})
    expected = euler(gaussian, 80.0 * noise, label, torch.tensor([*sigmas, 0.0], dtype=torch.float64))
    assert torch.allclose(image, expected, rtol=0, atol=1e-12) and num_calls == 3


def test_fresh_noise_keeps_the_variance_of_the_next_level(gaussian):
    calls = Calls((80.0, 2.0), between="noise", sigma_min=0.5)
    seen = []

    def watched(image, sigma, label):
        seen.append(image)
        return torch.zeros_like(image)

    noise, fresh = torch.zeros(20000, 1, 1, 1), torch.randn(20000, 1, 1, 1)
    calls.draw(watched, noise, torch.full((20000,), -1), lambda number: fresh)
    assert torch.equal(seen[1], (2.0**2 - 0.5**2) ** 0.5 * fresh)


def test_a_consistency_map_is_the_image_at_its_end(gaussian):
    image, label = torch.randn(5, 1, 1, 1).double(), torch.full((5,), -1)
    sigma = torch.full((5,), 0.002, dtype=torch.float64)
    found = consistency(gaussian, image, gaussian(image, sigma, label), sigma, 0.002)
    assert torch.equal(found, image)


def test_a_consistency_map_that_ends_at_zero_is_the_denoiser(gaussian):
    image, label, sigma = torch.randn(5, 1, 1, 1).double(), torch.full((5,), -1), torch.full((5,), 3.0).double()
    x0 = gaussian(image, sigma, label)
    assert torch.allclose(consistency(gaussian, image, x0, sigma, 0.0), x0, rtol=1e-12)


def test_further_noise_of_a_seed_follows_its_label():
    first = seeded_noise(range(3), (1, 2, 2), num_classes=4)
    noise, label, fresh = seeded_draws(range(3), (1, 2, 2), num_classes=4, num_fresh=2)
    assert torch.equal(noise, first[0]) and torch.equal(label, first[1])
    generator = torch.Generator().manual_seed(1)
    torch.randn(1, 2, 2, generator=generator), torch.randint(4, (), generator=generator)
    assert torch.equal(fresh[0][1], torch.randn(1, 2, 2, generator=generator))
    assert torch.equal(fresh[1][1], torch.randn(1, 2, 2, generator=generator))


def test_facts_come_back_as_the_calls_that_wrote_them():
    calls = Calls((80.0, 2.5), between="noise", map="consistency", sigma_min=0.002)
    assert Calls.of(calls.facts()) == calls and calls.num_fresh == 1 and "scheduler" not in calls.facts()
    named = Calls((80.0, 2.5), scheduler={"class": "LCMScheduler", "config": {}, "timesteps": [9.0, 1.0]})
    assert Calls.of(named.facts()) == named and named.first(2) == named and named.first(1) == Calls((80.0,))
    assert Calls((80.0, 2.5), between="ode").num_fresh == 0
    assert Calls((80.0, 2.5), between="ancestral").num_fresh == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"sigmas": []}, "do not descend"),
        ({"sigmas": [2.0, 3.0]}, "do not descend"),
        ({"sigmas": [1.0], "sigma_min": 2.0}, "do not descend"),
        ({"sigmas": ["80"]}, "are no noise levels"),
        ({"sigmas": 80.0}, "are no noise levels"),
        ({"sigmas": [80.0], "between": "nothing"}, "between 'nothing'"),
        ({"sigmas": [80.0], "steps": 3}, "unknown steps"),
        ({"sigmas": [80.0], "scheduler": {"config": {}}}, "has no class or no config"),
    ],
)
def test_facts_of_no_student_are_refused(facts, words):
    with pytest.raises(ValueError, match=words):
        Calls.of(facts)


def test_a_student_that_takes_noise_between_its_calls_is_not_drawn_without(gaussian):
    solver = {"name": "student", "calls": Calls((80.0, 2.0)).facts()}
    with pytest.raises(ValueError, match="needs fresh noise between them"):
        solve(gaussian, torch.zeros(1, 1, 1, 1), torch.tensor([-1]), solver)
