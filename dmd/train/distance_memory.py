"""Counts the bytes that the regression loss's distance saves for its backward pass, on fake tensors, without memory."""

from __future__ import annotations

import json
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmd.methods.base import Distance
from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.methods.parts.distances import Lpips, l2_distance, lpips_shapes
from dmd.models.autoencoder import Codec
from dmd.models.compute import DTYPES
from dmd.train.memory import distance_bytes


@cache
def counted_distance(lpips: int | None, shape: tuple[int, ...], num: int, codec: str | None, dtype: str) -> int:
    """Bytes that a distance of the regression loss saves for `num` images or latents; its weights do not matter.

    Args:
        lpips: side in pixels at which LPIPS sees images; None is the squared or absolute error.
        shape: (C, H, W) of an image or latent.
        codec: arguments of the `Codec` that decodes latents, as canonical JSON; None if nothing is decoded.
        dtype: "float32" or "bfloat16", for passes of the decoder.
    """
    shapes = lpips_shapes() if lpips is not None else ()  # before FakeTensorMode: imports packages with real tensors
    with FakeTensorMode():
        distance: Distance = l2_distance
        if lpips is not None:
            trunk, heads = ({name: torch.empty(size) for name, size in group.items()} for group in shapes)
            distance = Lpips(trunk, heads, pooling="average", size=lpips)
        if codec is not None:
            decoder = Codec(**json.loads(codec)).requires_grad_(False).eval()
            decoder.dtype = DTYPES[dtype]
            distance = DecodedDistance(distance, decoder)
        return distance_bytes(distance, shape, num)
