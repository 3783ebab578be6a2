"""Derivatives along a direction, by forward-mode differentiation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def forward_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], directions: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value of a function, and its derivative along a direction of its inputs; neither has a graph.

    It costs about two passes. Fused kernels of attention have no such derivative, so attention takes the plain one,
    which needs memory for the square of the number of pixels. Compiled and sharded networks have none either.

    Args:
        directions: of the inputs, shaped and typed as they are.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _PlainGroupNorm(), forward_ad.dual_level():
        pairs = zip(inputs, directions, strict=True)
        value, derivative = forward_ad.unpack_dual(function(*(forward_ad.make_dual(*pair) for pair in pairs)))
    return value, torch.zeros_like(value) if derivative is None else derivative


class _PlainGroupNorm(TorchFunctionMode):
    """Computes GroupNorm step by step: torch's derivative fails for fake tensors, and for some that are real."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_group_norm if func is functional.group_norm else func)(*args, **(kwargs or {}))


def _group_norm(
    image: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """As torch.nn.functional.group_norm, also in the layout of the result: a mask of dropout depends on it."""
    groups = image.reshape(len(image), num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    found = ((groups - mean) * (variance + eps).rsqrt()).reshape(image.shape)
    by_channel = (1, -1, *[1] * (image.ndim - 2))
    found = found if weight is None else found * weight.reshape(by_channel)
    found = found if bias is None else found + bias.reshape(by_channel)
    channels_last = image.ndim == 4 and image.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not image.is_contiguous():
        return found.contiguous(memory_format=torch.channels_last)
    return found
