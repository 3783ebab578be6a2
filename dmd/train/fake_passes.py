"""What passes of networks keep, counted on fake tensors: no weights are needed, and no memory is taken."""

from __future__ import annotations

import json
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmd.methods.base import Distance
from dmd.methods.parts.decoded import Decoded
from dmd.methods.parts.distances import GROUPS, Lpips, l2_distance
from dmd.models.autoencoder import Codec
from dmd.models.compute import DTYPES
from dmd.train.memory import distance_bytes

WIDTHS = (64, 128, 256, 512, 512)  # of VGG16


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
        return distance_bytes(distance, shape, num)


def _lpips(size: int) -> Lpips:
    trunk, channels = {}, 3
    for group, width in zip(GROUPS, WIDTHS, strict=True):
        for layer in group:
            trunk[f"features.{layer}.weight"] = torch.empty(width, channels, 3, 3)
            trunk[f"features.{layer}.bias"] = torch.empty(width)
            channels = width
    heads = {f"lin{number}.model.1.weight": torch.empty(1, width, 1, 1) for number, width in enumerate(WIDTHS)}
    return Lpips(trunk, heads, pooling="average", size=size)
