"""Networks F_theta(image, noise_condition, label): architectures only, no noise levels, no files.

`build` makes one from its architecture, a mapping of JSON values that artifacts have in their metadata.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dmd.models import sizes
from dmd.models.networks.block import ADM, DDPMPP, NCSNPP
from dmd.models.networks.mlp import MLP
from dmd.models.networks.sd3 import SD3
from dmd.models.networks.unet import Shape, UNet
from dmd.models.networks.unet2d import UNet2D
from dmd.models.networks.unet2d_condition import UNet2DCondition

FAMILIES = {"adm": ADM, "ddpmpp": DDPMPP, "ncsnpp": NCSNPP}
OTHERS = {"mlp": MLP, "unet2d": UNet2D, "unet2d-condition": UNet2DCondition, "sd3": SD3}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Network with random weights, drawn from torch's global generator.

    Args:
        architecture: `kind`, and keys that depend on it: for adm, ddpmpp and ncsnpp the fields of
            dmd.models.networks.unet.Shape; for mlp the arguments of dmd.models.networks.mlp.MLP; for unet2d,
            unet2d-condition and sd3 `config`, the arguments of diffusers' UNet2DModel, UNet2DConditionModel or
            SD3Transformer2DModel.

    Returns:
        Module: image (B, C, R, R), noise_condition (B,) float32, or (B, 2) with `second_time`, label (B,) int64 or, for
        unet2d-condition and sd3, text states (B, L, E) float32 -> (B, C, R, R).

    Raises:
        ValueError: unknown kind, unknown or missing key, or a number that does not fit or is beyond `dmd.models.sizes`.
    """
    arguments = dict(architecture)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in (*OTHERS, *FAMILIES):
        raise ValueError(f"network kind: {kind!r:.100} is none of {', '.join([*FAMILIES, *OTHERS])}")
    _check_keys(kind, arguments, OTHERS.get(kind, Shape))
    config = arguments.get("config", arguments)
    with sizes.making(f"network {kind}", config if isinstance(config, Mapping) else arguments):
        return OTHERS[kind](**arguments) if kind in OTHERS else UNet(FAMILIES[kind], Shape(**arguments))


def without_classes(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The unconditional variant of a class-conditional architecture; others are returned as they are."""
    kind = architecture["kind"]
    if kind == "unet2d":
        return {**architecture, "config": {**architecture["config"], "num_class_embeds": None}}
    return {**architecture, "num_classes": 0} if kind in FAMILIES or kind == "mlp" else dict(architecture)


def with_second_time(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The variant whose noise condition is (B, 2), with a second time; ValueError if its kind has none."""
    if architecture.get("kind") not in (*FAMILIES, "mlp"):
        raise ValueError(f"network {architecture.get('kind')!r:.40} cannot take a second time")
    return {**architecture, "second_time": True}


def with_states(architecture: Mapping[str, Any], num: int) -> dict[str, Any]:
    """The variant that gives `num` states of a path in one pass, each told by its second time; ValueError as above."""
    return {**with_second_time(architecture), "states": num}


def variant(architecture: Mapping[str, Any], *, second_time: bool, states: int) -> dict[str, Any]:
    """The variant with a second time or several states, where they are asked for; ValueError as above."""
    if states > 1:
        return with_states(architecture, states)
    return with_second_time(architecture) if second_time else dict(architecture)


def _check_keys(kind: str, arguments: dict[str, Any], maker: Callable[..., Any]) -> None:
    known = inspect.signature(maker).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"network {kind}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    needed = {name for name, key in known.items() if key.default is inspect.Parameter.empty}
    if missing := sorted(needed - set(arguments)):
        raise ValueError(f"network {kind}: missing {', '.join(missing)}")
