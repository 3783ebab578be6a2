"""Sizes of the released EDM networks (Karras et al. 2022), as `dmd.networks.build` takes them."""

from typing import Any

IMAGENET64: dict[str, Any] = {  # ADM, 295,899,267 parameters
    "kind": "adm",
    "resolution": 64,
    "channels": 3,
    "width": 192,
    "multipliers": [1, 2, 3, 4],
    "blocks": 3,
    "attention": [32, 16, 8],
    "num_classes": 1000,
}
CIFAR10: dict[
    str, Any
] = {  # DDPM++, class-conditional; the file has `augment: 9` besides, weights that compute nothing here
    "kind": "ddpmpp",
    "resolution": 32,
    "channels": 3,
    "width": 128,
    "multipliers": [2, 2, 2],
    "blocks": 4,
    "attention": [16],
    "num_classes": 10,
}
