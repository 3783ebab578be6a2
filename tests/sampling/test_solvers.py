"""Solvers against exact solutions: order of convergence, end point, cost."""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, UniPCMultistepScheduler

from dmd.models.denoiser import GaussianMixtureDenoiser
from dmd.sampling.noise import sampling_sigmas, seeded_noise
from dmd.sampling.solvers import solve

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
SMOOTH = {"sigma_min": 1e-4, "sigma_max": 10.0, "rho": 7.0}
MEAN, STD = 0.4, 0.6


def gaussian() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(torch.full((1, 2, 1, 1), MEAN), torch.tensor([STD]).double(), torch.ones(1))


def mixture() -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).reshape(2, 2, 1, 1)
    return GaussianMixtureDenoiser(means, torch.tensor([0.5, 0.8]), torch.tensor([0.4, 0.6]))


def noise(num: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    values, label = seeded_noise(range(num), (2, 1, 1), num_classes=0)
    return values.double(), label


def draw(denoiser, name: str, steps: int, grid: dict) -> torch.Tensor:
    return solve(denoiser, *noise(), {"name": name, "steps": steps, **grid})[0]


def end_point(sigma_max: float) -> torch.Tensor:
    start = sigma_max * noise()[0]
    mean = torch.tensor(MEAN).double()  # float32 0.4, as the denoiser holds it
    return mean + (start - mean) * STD / (STD**2 + sigma_max**2) ** 0.5


@pytest.mark.parametrize(("name", "factor"), [("euler", 2), ("heun", 4), ("dpmsolver++2m", 4), ("unipc-2m", 8)])
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_solver_error_falls_by_its_order_when_steps_double(name, factor, make):
    exact = end_point(SMOOTH["sigma_max"]) if make is gaussian else draw(make(), "unipc-2m", 2048, SMOOTH)
    errors = [(draw(make(), name, steps, SMOOTH) - exact).square().mean().sqrt() for steps in (64, 128, 256)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert float(coarse / fine) == pytest.approx(factor, rel=0.1)


def test_ode_of_one_gaussian_ends_at_its_closed_form():
    found = draw(gaussian(), "heun", 256, GRID)
    torch.testing.assert_close(found, end_point(80.0), rtol=1e-3, atol=1e-4)


def test_one_euler_step_from_sigma_is_the_one_step_generator():
    one_step, _ = solve(mixture(), *noise(), {"name": "student", "calls": {"sigmas": [80.0]}})
    torch.testing.assert_close(draw(mixture(), "euler", 1, GRID), one_step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_dpmsolver_2m_draws_what_diffusers_draws(steps):
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=STD, final_sigmas_type="zero", **GRID)
    scheduler.set_timesteps(steps)
    denoiser, (start, label) = mixture(), noise()
    image = start * scheduler.sigmas[0]
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x0 = denoiser(image, sigma.double().expand(len(image)), label)
        skip, out = STD**2 / (sigma**2 + STD**2), sigma * STD / (sigma**2 + STD**2) ** 0.5
        image = scheduler.step((x0 - skip * image) / out, timestep, image).prev_sample
    torch.testing.assert_close(draw(denoiser, "dpmsolver++2m", steps, GRID), image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 35])
def test_unipc_2m_makes_the_steps_of_diffusers(steps):
    """Which holds x / (1 + sigma^2)^1/2, and corrects a state at the beginning of the next step."""
    options = {"solver_order": 2, "solver_type": "bh2", "lower_order_final": True}
    scheduler = UniPCMultistepScheduler(prediction_type="sample", **options)
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sampling_sigmas(steps, **GRID), torch.arange(steps)
    denoiser, (start, label) = mixture(), noise()
    scales = (1 + scheduler.sigmas**2).sqrt()
    image, expected = start * scheduler.sigmas[0] / scales[0], []
    for step, (sigma, scale) in enumerate(zip(scheduler.sigmas[:-1], scales[:-1], strict=True)):
        x0 = denoiser(image * scale, sigma.expand(len(image)), label)
        image = scheduler.step(x0, step, image).prev_sample
        expected.append(scheduler.last_sample * scale)
    found = [start * scheduler.sigmas[0]]
    solver = {"name": "unipc-2m", "steps": steps, **GRID}
    solve(denoiser, start, label, solver, on_step=lambda step, state: found.append(state.clone()))
    assert len(found) == steps + 1
    torch.testing.assert_close(torch.stack(found), torch.stack([*expected, image]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [({"name": "heun", "steps": 18, **GRID}, 35), ({"name": "heun", "steps": 256, **GRID}, 511)]
    + [({"name": "euler", "steps": steps, **GRID}, steps) for steps in (1, 2, 8)]
    + [({"name": name, "steps": steps, **GRID}, steps) for name in ("dpmsolver++2m", "unipc-2m") for steps in (1, 2, 8)]
    + [({"name": "student", "calls": {"sigmas": [80.0]}}, 1)],
)
def test_solver_reports_the_calls_it_makes(solver, calls):
    seen = []

    def denoiser(image, sigma, label):
        seen.append((image.dtype, sigma.dtype, tuple(sigma.shape), label.tolist()))
        return image * 0

    values, label = seeded_noise(range(3), (1, 2, 2), num_classes=4)
    image, found = solve(denoiser, values, label, solver)
    assert found == calls == len(seen)
    assert set(map(str, seen)) == {str((torch.float32, torch.float32, (3,), label.tolist()))}
    assert image.dtype == torch.float32 and image.shape == values.shape


def test_solver_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="'dpm'.*student.*heun"):
        solve(gaussian(), *noise(), {"name": "dpm", "steps": 2, **GRID})
