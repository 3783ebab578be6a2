"""The denoising loss: its gradient, its refusals."""

import pytest
import torch

from dmd.methods.parts.denoising_loss import denoising_loss


def test_loss_and_gradient_equal_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    denoised, image = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64).unbind()
    denoised.requires_grad_()
    weight = torch.tensor([100.0, 1.0, 0.25]).double()
    loss = denoising_loss(denoised, image, weight=weight)
    each = weight[:, None, None, None]
    torch.testing.assert_close(loss, (each * (denoised - image).square()).sum() / image.numel())
    (found,) = torch.autograd.grad(loss, denoised)
    torch.testing.assert_close(found, 2 * each * (denoised.detach() - image) / image.numel())


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\), image \(2, 3, 4, 4\)"):
        denoising_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), weight=torch.ones(2))
