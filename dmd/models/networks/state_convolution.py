"""Convolution along the states of a path, in Fourier space, by which a network gives several states in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_STATES = 64


class StateConvolution(nn.Module):
    """h + silu(F^-1 R F h) of features h of M states (Zheng et al. 2023, arXiv 2211.13449, Section 3.2).

    F is the discrete Fourier transform along the states, in time order, and R one complex matrix of the channels for
    each of its M // 2 + 1 frequencies. R is zero at first, so that at first nothing changes. Transforms are products
    with real matrices: M is small.

    Args:
        channels: of the features.
        num_states: M.

    Attributes:
        weight: real and imaginary part of R, (2, M // 2 + 1, channels, channels).
    """

    to_frequencies: Tensor
    to_states: Tensor

    def __init__(self, channels: int, num_states: int) -> None:
        super().__init__()
        frequencies, states = torch.arange(num_states // 2 + 1, device="cpu"), torch.arange(num_states, device="cpu")
        angle = frequencies[:, None] * states * (2 * math.pi / num_states)
        twice = torch.where((frequencies == 0) | (2 * frequencies == num_states), 1.0, 2.0)  # for negative frequencies
        basis = torch.stack([angle.cos(), -angle.sin()])  # real and imaginary part of F, (2, frequencies, M)
        self.register_buffer("to_frequencies", basis, persistent=False)
        self.register_buffer("to_states", basis * twice[:, None] / num_states, persistent=False)
        self.weight = nn.Parameter(torch.zeros(2, len(frequencies), channels, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B M, C, ...), the M states of each image in turn -> the same shape."""
        num_states, channels = self.to_states.shape[2], self.weight.shape[2]
        states = hidden.reshape(-1, num_states, channels, math.prod(hidden.shape[2:]))
        spectrum = torch.einsum("rkm,bmcp->bkrcp", self.to_frequencies.to(hidden.dtype), states).flatten(2, 3)
        real, imaginary = self.weight
        kernel = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)  # R on (real, imag.)
        mixed = torch.matmul(kernel, spectrum).unflatten(2, (2, channels))
        change = torch.einsum("rkm,bkrcp->bmcp", self.to_states.to(mixed.dtype), mixed)
        return hidden + F.silu(change).reshape(hidden.shape).to(hidden.dtype)


def check_num_states(value: object, *, second_time: bool) -> None:
    """ValueError unless the argument `states` is a number from 1 to 64, and 1 for a network without a second time."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_STATES:
        raise ValueError(f"states: {value!r:.80} is no integer from 1 to {MOST_STATES}")
    if value > 1 and not second_time:
        raise ValueError(f"states: {value}, but a network of several states needs second_time, the place of a state")
