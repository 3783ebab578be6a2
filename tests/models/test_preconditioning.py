"""Preconditioning by kind: closed forms, limits, and one loss for what each network predicts."""

import math

import pytest
import torch
from torch import nn

from dmd.models.denoiser import Denoiser, per_sample, start_scale
from dmd.models.preconditioning import Discrete, preconditioning

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
TABLE = torch.cumprod(1 - BETAS, 0).tolist()
SIGMAS = torch.tensor([math.sqrt((1 - square) / square) for square in TABLE], dtype=torch.float64)
KINDS = [{"kind": "edm"}, {"kind": "ve"}, {"kind": "flow"}, {"kind": "flow", "prediction": "x0 - noise"}] + [
    {"kind": "discrete", "alphas_cumprod": TABLE, "prediction": name} for name in ("epsilon", "v", "sample")
]
NO_LABEL = torch.tensor([-1])


class Truth(nn.Module):
    """A network that returns what it is told, and keeps what it saw."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image, condition, label):
        self.image, self.condition = image, condition
        return self.answer


def drawn(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, noise and their sum at each sigma, float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(sigma), 3, 4, 4, generator=generator, dtype=torch.float64).unbind()
    return x0, noise, x0 + per_sample(sigma, x0) * noise


def target(kind: dict, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What a perfect network of this kind returns, from the definitions in its own coordinates."""
    level = per_sample(sigma, x0)
    alpha, sigma_t = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
    if kind["kind"] == "ve":
        return -noise
    if kind["kind"] == "flow":
        return x0 - noise if "prediction" in kind else noise - x0
    if kind["kind"] == "edm":
        spread = (level**2 + 0.25).sqrt()
        return (x0 - 0.25 / spread**2 * (x0 + level * noise)) * spread / (level * 0.5)
    return {"epsilon": noise, "v": alpha * noise - sigma_t * x0, "sample": x0}[kind["prediction"]]


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_network_gives_the_clean_image_at_every_noise_level(kind):
    sigma = SIGMAS[[0, 1, 250, 500, 998, 999]]
    x0, noise, image = drawn(sigma)
    network = Truth(target(kind, x0, noise, sigma))
    found = Denoiser(network, sigma_data=0.5, preconditioning=kind)(image, sigma, NO_LABEL)
    torch.testing.assert_close(found, x0, rtol=1e-10, atol=1e-10)


def test_x0_from_epsilon_loses_nothing_to_the_sum():
    x0, noise, image = (part.float() for part in drawn(SIGMAS[[999]]))
    predicted = noise + 0.01 * x0  # what a network may return: x0 stays a small difference of large terms
    numbers = {"kind": "discrete", "alphas_cumprod": TABLE, "prediction": "epsilon"}
    denoiser = Denoiser(Truth(predicted), sigma_data=1.0, preconditioning=numbers)
    found = denoiser(image, SIGMAS[[999]].float(), NO_LABEL)
    expected = image.double() - float(SIGMAS[[999]].float()) * predicted.double()
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())


@pytest.mark.parametrize("kind", KINDS)
def test_network_starts_from_unit_noise_where_its_levels_end_in_it(kind):
    noise, sigma = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), float(SIGMAS[-1])
    denoiser = Denoiser(network := Truth(torch.zeros(2, 3, 4, 4)), sigma_data=0.5, preconditioning=kind)
    scale = start_scale(denoiser, sigma)
    denoiser(scale * noise, torch.full((2,), sigma), NO_LABEL)
    if kind["kind"] in ("discrete", "flow"):
        torch.testing.assert_close(network.image, noise, rtol=3e-7, atol=0)
        assert scale == pytest.approx({"discrete": math.hypot(1, sigma), "flow": 1 + sigma}[kind["kind"]])
    else:
        assert scale == sigma
    assert start_scale(lambda image, sigma, label: image, 80.0) == 80.0


def test_flow_sees_the_straight_line_between_image_and_noise_at_its_own_time():
    times = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    sigma = times / (1 - times)
    x0, noise, image = drawn(sigma)
    network = Truth(noise - x0)
    Denoiser(network, sigma_data=1.0, preconditioning={"kind": "flow"})(image, sigma, NO_LABEL)
    line = (1 - per_sample(times, x0)) * x0 + per_sample(times, x0) * noise
    torch.testing.assert_close(network.image, line, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.condition, 1000 * times)
    alpha, levels = preconditioning({"kind": "flow", "num_levels": 4}, sigma_data=1.0).table
    torch.testing.assert_close(alpha, torch.tensor([0.8, 0.6, 0.4, 0.2]).double())
    torch.testing.assert_close(alpha * levels, 1 - alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_weight_makes_the_x0_error_that_of_the_prediction(kind):
    sigma = SIGMAS[[10, 250, 500, 900]]
    x0, noise, image = drawn(sigma)
    right = target(kind, x0, noise, sigma)
    wrong = right + torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser = Denoiser(Truth(wrong), sigma_data=0.5, preconditioning=kind)
    error = (denoiser(image, sigma, NO_LABEL) - x0).square().flatten(1).mean(1)
    expected = (wrong - right).square().flatten(1).mean(1)
    torch.testing.assert_close(denoiser.loss_weight(sigma) * error, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_discrete_network_sees_a_unit_variance_image_and_its_own_time(prediction):
    index = torch.tensor([0, 1, 400, 999])
    network = Truth(torch.zeros(4, 1, 64, 64))
    numbers = {"kind": "discrete", "alphas_cumprod": TABLE, "prediction": prediction}
    denoiser = Denoiser(network, sigma_data=1.0, preconditioning=numbers)
    sigma = SIGMAS[index].float()
    x0, noise = torch.randn(2, 4, 1, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    denoiser(x0 + per_sample(sigma, x0) * noise, sigma, NO_LABEL)
    torch.testing.assert_close(network.image.std((1, 2, 3)), torch.ones(4), rtol=0.05, atol=0)
    assert network.condition.dtype == torch.float32
    torch.testing.assert_close(network.condition, index.float(), rtol=0, atol=2e-3)
    sqrt = torch.tensor(TABLE).double().sqrt()[index].float()
    torch.testing.assert_close(network.image, per_sample(sqrt, x0) * (x0 + per_sample(sigma, x0) * noise))


def test_time_between_levels_is_linear_in_log_sigma_and_stays_within_the_table():
    found = Discrete(TABLE, prediction="epsilon")
    between = (0.75 * SIGMAS[100].log() + 0.25 * SIGMAS[101].log()).exp()
    sigma = torch.stack([between, SIGMAS[0] / 3, SIGMAS[-1] * 3])
    torch.testing.assert_close(found(sigma).condition, torch.tensor([100.25, 0.0, 999.0]).double())
    finite = found(torch.tensor([1e-8, 1e6]))
    assert all(bool(part.isfinite().all()) for part in finite)


def test_table_ascends_in_sigma_and_keeps_unit_variance():
    alpha, sigma = Discrete(TABLE, prediction="v").table
    torch.testing.assert_close(sigma, SIGMAS)
    torch.testing.assert_close(alpha.square() * (1 + sigma.square()), torch.ones(1000).double())
    assert bool((sigma.diff() > 0).all())
    assert all(preconditioning({"kind": kind}, sigma_data=0.5).table is None for kind in ("edm", "ve"))


def test_condition_of_edm_can_be_scaled_and_ve_sees_the_log_of_half_sigma():
    sigma = torch.tensor([0.1, 2.0, 80.0]).double()
    scaled = preconditioning({"kind": "edm", "condition_scale": 1000.0}, sigma_data=0.5)(sigma)
    plain = preconditioning(None, sigma_data=0.5)(sigma)
    torch.testing.assert_close(scaled.condition, 250 * sigma.log())
    assert all(torch.equal(one, other) for one, other in zip(scaled[:3], plain[:3], strict=True))
    found = preconditioning({"kind": "ve"}, sigma_data=0.5)(sigma)
    torch.testing.assert_close(found.condition, (sigma / 2).log())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "iddpm"}, "preconditioning kind 'iddpm' is none of edm, ve, discrete, flow"),
        ({"kind": "discrete", "alphas_cumprod": TABLE, "prediction": "flow"}, "prediction 'flow' is none of"),
        ({"kind": "discrete", "alphas_cumprod": TABLE[::-1], "prediction": "v"}, "alphas_cumprod: .* descend"),
        ({"kind": "discrete", "alphas_cumprod": [0.9, 0.0], "prediction": "v"}, "alphas_cumprod"),
        ({"kind": "flow", "num_levels": 1}, "num_levels 1: at least two"),
        ({"kind": "flow", "prediction": "v"}, "prediction 'v' is none of noise - x0, x0 - noise"),
        ({"kind": "discrete", "alphas_cumprod": [0.9], "prediction": "v"}, "alphas_cumprod: it needs at least two"),
    ],
)
def test_preconditioning_that_cannot_be_used_is_named(section, message):
    with pytest.raises(ValueError, match=message):
        preconditioning(section, sigma_data=0.5)
