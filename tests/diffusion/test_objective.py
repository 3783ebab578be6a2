"""The denoising loss: its weight, its gradient, its refusals."""

import pytest
import torch

from dmd.diffusion.objective import denoising_loss, denoising_weight


def test_weight_undoes_the_output_scale_at_every_noise_level():
    sigma = torch.tensor([0.002, 0.5, 80.0]).double()
    c_out = sigma * 0.5 / (sigma.square() + 0.25).sqrt()
    torch.testing.assert_close(denoising_weight(sigma, 0.5) * c_out.square(), torch.ones(3).double())
    assert float(denoising_weight(torch.tensor([2.0]), 0.5)) == pytest.approx(0.25 + 4)


def test_loss_and_gradient_equal_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    denoised, image = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64).unbind()
    denoised.requires_grad_()
    sigma = torch.tensor([0.1, 1.0, 30.0]).double()
    loss = denoising_loss(denoised, image, sigma, sigma_data=0.7)
    weight = (1 / sigma.square() + 1 / 0.49)[:, None, None, None]
    torch.testing.assert_close(loss, (weight * (denoised - image).square()).sum() / image.numel())
    (found,) = torch.autograd.grad(loss, denoised)
    torch.testing.assert_close(found, 2 * weight * (denoised.detach() - image) / image.numel())


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\), image \(2, 3, 4, 4\)"):
        denoising_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(2), sigma_data=0.5)
