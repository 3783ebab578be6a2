"""Makes files in exactly the layout of the released EDM teachers, with random weights and none of their code."""

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dmd.models.networks import build
from dmd.models.networks.block import Block
from dmd.models.networks.layers import NoiseFeatures, ResidualDown

SOURCE = "import pathlib\npathlib.Path('executed').touch()\n"  # what NVIDIA's reader would execute
STYLES = {
    "ddpmpp": {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1},
    "ncsnpp": {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2},
}
CLASSES = {nn.Linear: "Linear", nn.Conv2d: "Conv2d", nn.GroupNorm: "GroupNorm", Block: "UNetBlock"}


def make_edm_pickle(
    path: Path,
    *,
    family: str,
    resolution: int,
    width: int,
    multipliers: list[int],
    blocks: int,
    attention: list[int],
    channels: int = 3,
    num_classes: int = 0,
    augment: int = 0,
    seed: int = 0,
    preconditioning: str = "EDMPrecond",
    source: str = SOURCE,
    **changed: Any,
) -> nn.Module:
    """Writes `{"ema": module}` as released, and returns the network whose weights it holds.

    Args:
        family: adm, ddpmpp or ncsnpp; the numbers are those of dmd.models.networks.unet.Shape.
        preconditioning: class of the outer module.
        source: text that stands as the source code of every class.
        changed: arguments of the network that override what the family says.
    """
    shape = {"resolution": resolution, "channels": channels, "num_classes": num_classes, "augment": augment}
    shape |= {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "dropout": 0.1}
    network = _randomised({"kind": family, **shape}, seed)
    arguments: dict[str, Any] = {"model_channels": width, "channel_mult": multipliers, "num_blocks": blocks}
    arguments |= {"attn_resolutions": attention, "dropout": 0.1, "augment_dim": augment}
    filter = [1, 3, 3, 1] if family == "ncsnpp" else [1, 1]
    if family != "adm":
        arguments |= {**STYLES[family], "decoder_type": "standard", "resample_filter": filter}
    arguments |= changed
    ends = {"img_resolution": resolution, "in_channels": channels, "out_channels": channels, "label_dim": num_classes}
    name = "DhariwalUNet" if family == "adm" else "SongUNet"
    with _pretended() as wrap:
        model = _persistent(network, name, wrap, source, filter, {**ends, **arguments})
        outer = {"img_resolution": resolution, "img_channels": channels, "label_dim": num_classes, "model_type": name}
        module = wrap(preconditioning, _state({}, {}, {"model": model}, {**outer, **arguments}), source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps({"ema": module}))
    return network


def _randomised(architecture: dict[str, Any], seed: int) -> nn.Module:
    """A network of moderate outputs in which no parameter is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(architecture)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.eval()


class _Persistent:
    """What a released file says of one module; it pickles as a call of NVIDIA's function."""

    function: Any

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        return type(self).function, (self.meta,)


@contextlib.contextmanager
def _pretended() -> Iterator[Any]:
    """While it lasts, torch_utils.persistence can be named in a pickle; yields the maker of persistent objects."""
    names = ("torch_utils", "torch_utils.persistence")
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("the file's own function was called")

    _reconstruct_persistent_obj.__module__ = names[1]
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules[names[1]]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    _Persistent.function = staticmethod(_reconstruct_persistent_obj)

    def wrap(name: str, state: dict[str, Any], source: str) -> _Persistent:
        return _Persistent({"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state})

    sys.modules.update(modules)
    try:
        yield wrap
    finally:
        for each in names:
            del sys.modules[each]


def _state(parameters: Any, buffers: Any, modules: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    state = {"training": False, "_parameters": parameters, "_buffers": buffers, "_backward_hooks": {}}
    state |= {"_non_persistent_buffers_set": set(), "_modules": modules}
    return state | {"_init_args": (), "_init_kwargs": arguments}


def _persistent(
    module: nn.Module, name: str, wrap: Any, source: str, filter: list[int], arguments: dict[str, Any]
) -> Any:
    """One module and all below, as a released file holds it."""
    below: dict[str, Any] = {}
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleDict):
            below[key] = nn.ModuleDict()
            below[key].__dict__["_modules"] = {
                each: _persistent(part, _class_name(part), wrap, source, filter, {}) for each, part in child.items()
            }
        elif isinstance(child, NoiseFeatures):
            buffers = dict(child.state_dict())
            kind = "FourierEmbedding" if buffers else "PositionalEmbedding"
            below[key] = wrap(kind, _state({}, buffers, {}, {"num_channels": 8}), source)
        elif name_of_child := _class_name(child):
            below[key] = _persistent(child, name_of_child, wrap, source, filter, {})
    if isinstance(module, Block):
        arguments = {"skip_scale": np.float64(sqrt(0.5)), "eps": 1e-6, "init": {"init_mode": "xavier_uniform"}}
        resampled = ("conv0", "skip") if module.resample is not None else ()
        for key in (key for key in resampled if key in below):
            below[key].meta["state"]["_buffers"] = {"resample_filter": _taps(filter)}
    buffers = {"resample_filter": _taps(filter)} if isinstance(module, ResidualDown) else {}
    parameters = dict(module._parameters)
    for key in (key for key in ("map_label", "map_augment", "skip") if getattr(module, key, 0) is None):
        below[key] = None
    return wrap(name, _state(parameters, buffers, below, arguments), source)


def _class_name(module: nn.Module) -> str:
    """The class in a released file that corresponds to one of our layers; empty where it has none."""
    return next((name for kind, name in CLASSES.items() if isinstance(module, kind)), "")


def _taps(filter: list[int]) -> torch.Tensor:
    row = torch.tensor(filter, dtype=torch.float32)
    return (torch.outer(row, row) / row.sum().square())[None, None]
