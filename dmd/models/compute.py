"""How passes of a denoiser are computed: precision, memory layout, compilation, activation checkpointing."""

from typing import TypedDict

import torch
from torch import nn

RECOMPILE_LIMIT = 64
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


class Compute(TypedDict, total=False):
    """Section `compute`; a key that is absent is off.

    Attributes:
        dtype: "float32", or "bfloat16" for passes of networks under autocast; parameters and losses stay float32.
        tf32: let GPUs use TF32: factors of float32 products are rounded to 10 bits of mantissa.
        channels_last: pixels before channels in memory.
        compile: torch.compile networks; the first pass of each shape takes minutes.
        gradient_checkpointing: save only block inputs; the backward pass recomputes each block.
        micro_batch_size: images per pass of a trained network; their gradients add up to that of the batch.
        shard_parameters: each process holds a shard of weights, gradients and moments (FSDP2).
    """

    dtype: str
    tf32: bool
    channels_last: bool
    compile: bool
    gradient_checkpointing: bool
    micro_batch_size: int | None
    shard_parameters: bool


def prepare(denoiser: nn.Module, compute: Compute) -> nn.Module:
    """Sets dtype, checkpointing and memory layout of a denoiser's network as in `compute`; returns the denoiser.

    Of a module without `network` only its dtype is set, if it has one.

    Raises:
        ValueError: an unknown dtype, or checkpointing of a network without blocks.
    """
    dtype = compute.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"compute.dtype {dtype!r} is not one of {list(DTYPES)}")
    if hasattr(denoiser, "dtype"):
        denoiser.dtype = DTYPES[dtype]  # type: ignore[assignment]
    network = getattr(denoiser, "network", None)
    if not isinstance(network, nn.Module):
        return denoiser
    if compute.get("gradient_checkpointing"):
        if not hasattr(network, "checkpointing"):
            raise ValueError(f"compute.gradient_checkpointing: {type(network).__name__} has no blocks to checkpoint")
        network.checkpointing = True  # type: ignore[assignment]
    if compute.get("channels_last"):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return denoiser


def slow_dtype(compute: Compute, device: torch.device) -> str | None:
    """What to tell if `device` computes in this dtype much slower than in float32; None if it does not."""
    dtype = compute.get("dtype", "float32")
    if dtype != "bfloat16" or device.type != "cpu":
        return None
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return (
        "warning: compute.dtype: bfloat16 is many times slower than float32 on this CPU, which has no instructions for "
        "it (AVX-512): write float32"
    )


def compile_network(denoiser: nn.Module, compute: Compute) -> nn.Module:
    """Compiles the network of a denoiser, in place, if `compute` says so; names and state stay the same."""
    network = getattr(denoiser, "network", None)
    if isinstance(network, nn.Module) and compute.get("compile"):
        # three networks of one class, each with and without gradient, and for a smaller last micro-batch, are more than
        # torch's limit of 8 compiled variants, above which it runs uncompiled
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
        network.compile(dynamic=False)
    return denoiser


def set_tf32(compute: Compute) -> None:
    """Sets the precision of float32 products on GPUs for this process: TF32 with `tf32`, else full float32."""
    allowed = bool(compute.get("tf32"))
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
