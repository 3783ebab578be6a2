"""What passes of networks keep, counted on fake tensors: no weights are needed, and no memory is taken."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmd.diffusion.compute import DTYPES
from dmd.diffusion.denoiser import Denoiser
from dmd.methods.decoded import Decoded
from dmd.methods.denoisers import Distance
from dmd.methods.memory import Activations, activations, lpips_bytes
from dmd.methods.regression import GROUPS, Lpips, l2_distance
from dmd.networks import build
from dmd.networks.autoencoder import Codec

WIDTHS = (64, 128, 256, 512, 512)  # of VGG16
OWN = ("adm", "ddpmpp", "ncsnpp", "mlp")  # kinds of networks that take num_classes


@cache
def counted(network: str, dtype: str) -> Activations:
    """Activations of an architecture in canonical JSON; the class embedding, a vector per image, is left out."""
    with FakeTensorMode():
        built: Any = build(without_classes(json.loads(network)))
        denoiser = Denoiser(built, sigma_data=0.5).eval()
        denoiser.dtype = DTYPES[dtype]
        return activations(denoiser, (built.channels, built.resolution, built.resolution))


@cache
def counted_distance(lpips: int | None, shape: tuple[int, ...], num: int, codec: str | None, dtype: str) -> int:
    """What a distance of the regression loss keeps of `num` images or latents; its weights do not matter.

    Args:
        lpips: side in pixels at which LPIPS sees images; None is the squared error.
        shape: (C, H, W) of an image or latent.
        codec: what decodes latents, arguments of `Codec` in canonical JSON; None where nothing is decoded.
        dtype: of its passes, "float32" or "bfloat16".
    """
    with FakeTensorMode():
        distance: Distance = l2_distance if lpips is None else _lpips(lpips)
        if codec is not None:
            decoder = Codec(**json.loads(codec)).requires_grad_(False).eval()
            decoder.dtype = DTYPES[dtype]
            distance = Decoded(distance, decoder)
        return lpips_bytes(distance, shape, num)


def _lpips(size: int) -> Lpips:
    trunk, channels = {}, 3
    for group, width in zip(GROUPS, WIDTHS, strict=True):
        for layer in group:
            trunk[f"features.{layer}.weight"] = torch.empty(width, channels, 3, 3)
            trunk[f"features.{layer}.bias"] = torch.empty(width)
            channels = width
    heads = {f"lin{number}.model.1.weight": torch.empty(1, width, 1, 1) for number, width in enumerate(WIDTHS)}
    return Lpips(trunk, heads, pooling="average", size=size)


def without_classes(network: dict[str, Any]) -> dict[str, Any]:
    """An architecture that takes no class, whose embedding is a vector per image."""
    if network["kind"] == "unet2d":
        return {**network, "config": {**network["config"], "num_class_embeds": None}}
    return {**network, "num_classes": 0} if network["kind"] in OWN else network
