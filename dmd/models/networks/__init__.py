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
        Module: image (B, C, R, R), noise_condition (B,) float32, or with `second_time` or `guidance_input` a further
        column for each, in this order, label (B,) int64 or, for unet2d-condition and sd3, text states (B, L, E)
        float32 -> (B, C, R, R).

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


def extended(
    architecture: Mapping[str, Any], *, second_time: bool = False, guidance: bool = False, states: int = 1
) -> dict[str, Any]:
    """The variant with further inputs, or with several states of a path in one pass.

    Args:
        second_time, guidance: whether a second time, and the guidance, is a further input.
        states: their number; above 1 each is told by its second time.

    Raises:
        ValueError: a kind of network that cannot have them.
    """
    kind, own = architecture.get("kind"), (*FAMILIES, "mlp")
    second_time = second_time or states > 1
    if second_time and kind not in own:
        raise ValueError(f"network {kind!r:.40} cannot take a second time")
    if guidance and kind not in (*own, "unet2d-condition"):
        raise ValueError(f"network {kind!r:.40} cannot take the guidance as an input")
    wanted = {"second_time": second_time, "guidance_input": guidance}
    added = {key: True for key, value in wanted.items() if value}
    return {**architecture, **added, **({"states": states} if states > 1 else {})}


def _check_keys(kind: str, arguments: dict[str, Any], maker: Callable[..., Any]) -> None:
    known = inspect.signature(maker).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"network {kind}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    needed = {name for name, key in known.items() if key.default is inspect.Parameter.empty}
    if missing := sorted(needed - set(arguments)):
        raise ValueError(f"network {kind}: missing {', '.join(missing)}")
