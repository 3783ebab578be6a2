"""Guidance: the extrapolation by hand, in one call, with shared weights."""

import pytest
import torch
from torch import nn

from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance

TABLE = torch.linspace(0.999, 0.005, 50).tolist()
EMPTY = torch.randn(5, 3, generator=torch.Generator().manual_seed(9))


class Conditional(nn.Module):
    """F = weight (image + time + mean of the text states); counts its calls."""

    checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.batches: list[int] = []

    def forward(self, image, condition, label):
        self.batches.append(len(image))
        means = label.float().flatten(1).mean(1) if label.ndim > 1 else label.float()
        return self.weight * (image + (condition + means)[:, None, None, None])


def conditional() -> Denoiser:
    levels = {"kind": "discrete", "alphas_cumprod": TABLE, "prediction": "epsilon"}
    return Denoiser(Conditional(), sigma_data=1.0, preconditioning=levels).eval()


def test_guided_denoiser_is_the_extrapolation_of_two_calls_in_one():
    denoiser = conditional()
    generator = torch.Generator().manual_seed(0)
    image, states = torch.randn(4, 2, 3, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    sigma = torch.tensor([0.1, 1.0, 3.0, 9.0])
    given, without = denoiser(image, sigma, states), denoiser(image, sigma, EMPTY.expand(4, 5, 3))
    for guidance in (1.5, 8.0):
        denoiser.network.batches.clear()
        found = with_guidance(denoiser, EMPTY, guidance)(image, sigma, states)
        torch.testing.assert_close(found, without + guidance * (given - without), rtol=1e-4, atol=1e-4)
        assert denoiser.network.batches == [8] and not torch.allclose(found, given, rtol=0.01)


def test_weights_levels_and_switches_are_shared():
    denoiser = conditional()
    denoiser.dtype, denoiser.scheduler = torch.bfloat16, {"_class_name": "PNDMScheduler"}
    found = with_guidance(denoiser, EMPTY, 3.0)
    assert [*found.parameters()] == [*denoiser.parameters()] and not found.training
    assert found.preconditioning is denoiser.preconditioning and found.table is denoiser.table
    assert (found.dtype, found.scheduler) == (denoiser.dtype, denoiser.scheduler)
    assert [*found.state_dict()] == ["network.network.weight"]


def test_no_guidance_is_the_denoiser_itself_and_less_is_refused():
    denoiser = conditional()
    assert with_guidance(denoiser, EMPTY, 1.0) is denoiser
    for bad in (0.0, 0.999, -3.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="guidance .* is not 1 .none. or more"):
            with_guidance(denoiser, EMPTY, bad)
    with pytest.raises(ValueError, match=r"label: shape \(4, 3\) a sample, not \(5, 3\) as empty"):
        with_guidance(denoiser, EMPTY, 2.0)(torch.zeros(1, 1, 2, 2), torch.ones(1), torch.zeros(1, 4, 3))


def test_a_class_can_stand_for_no_condition():
    denoiser, label = conditional(), torch.tensor([3, 1])
    image, sigma = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    given, without = denoiser(image, sigma, label), denoiser(image, sigma, torch.full((2,), 10))
    found = with_guidance(denoiser, torch.tensor(10), 4.0)(image, sigma, label)
    torch.testing.assert_close(found, without + 4 * (given - without), rtol=1e-5, atol=1e-5)
