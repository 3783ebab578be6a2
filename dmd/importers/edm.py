"""Reads the released EDM teachers (Karras et al. 2022): architecture, preconditioning, weights."""

import math
from pathlib import Path
from typing import Any

import torch

from dmd.importers import edm_pickle
from dmd.importers.edm_pickle import Module
from dmd.models.networks import FAMILIES
from dmd.models.networks.block import num_heads
from dmd.provenance import outside_files

# By class in the file: the kind of preconditioning, and the default arguments of the class.
PRECONDITIONING: dict[str, tuple[str, dict[str, float]]] = {
    "EDMPrecond": ("edm", {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5}),
    "VEPrecond": ("ve", {"sigma_min": 0.02, "sigma_max": 100.0}),
}
OUTER = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")  # other arguments of these classes
HARMLESS = frozenset(  # attributes that weights have, too, or that count in training or in half precision only
    "in_channels out_channels emb_channels num_channels in_features out_features dropout label_dropout use_fp16".split()
)
SONG = {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
DHARIWAL = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]}
COMMON = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.10, "label_dropout": 0}
STYLE_DEFAULTS: dict[str, Any] = {
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
STYLE_BY_KIND: dict[str, list[Any]] = {  # by kind of network: the values of the keys of STYLE_DEFAULTS, in order
    "ddpmpp": list(STYLE_DEFAULTS.values()),
    "ncsnpp": ["fourier", 2, "residual", "standard", [1, 3, 3, 1]],
}


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (`ema.*`, float32) and facts (network, preconditioning, sigma_data, shape, classes) of a released file.

    Raises:
        ValueError: the file is damaged or hostile, or holds a network that this package does not have, or a value that
            its classes would compute with in another way.
    """
    outer = edm_pickle.read(path)
    with outside_files.reading(path, "an EDM teacher"):
        facts = _facts(outer)
        weights = {
            f"ema.{name}": tensor.float()
            for name, tensor in outer.modules["model"].state()
            if not name.endswith(".resample_filter")  # a constant of the architecture, which is checked
        }
    return weights, facts


def _facts(outer: Module) -> dict[str, Any]:
    if outer.class_name not in PRECONDITIONING:
        known = ", ".join(PRECONDITIONING)
        raise ValueError(f"preconditioning {outer.class_name!r} is not supported; supported are {known}")
    if "model" not in outer.modules:
        raise ValueError(f"{outer.class_name} holds no module 'model'")
    kind, defaults = PRECONDITIONING[outer.class_name]
    arguments = _Arguments(outer, defaults)
    values = {name: arguments.number(name) for name in defaults}
    model = outer.modules["model"]
    network = architecture(model)
    shape = {"img_resolution": network["resolution"], "img_channels": network["channels"]}
    shape |= {"label_dim": network["num_classes"], "model_type": model.class_name}
    passed_on = {key: value for key, value in outer.arguments.items() if key not in (*defaults, *OUTER)}
    _check_values(outer.class_name, {key: outer.arguments[key] for key in shape if key in outer.arguments}, shape)
    _check_values(outer.class_name, passed_on, _defaults(model) | model.arguments)
    _check_values(outer.class_name, outer.attributes, shape | values)
    _check_attributes(model, network["kind"])
    if not 0 < values.get("sigma_data", 0.5) < math.inf or not values["sigma_min"] < values["sigma_max"]:
        raise ValueError(f"{outer.class_name}: sigma_data is not above 0, or sigma_min not below sigma_max: {values}")
    limits = {name: values[name] for name in ("sigma_min", "sigma_max") if 0 < values[name] < math.inf}
    return {
        "network": network,
        "preconditioning": {"kind": kind},
        "sigma_data": values.get("sigma_data", 0.5),
        "shape": [network["channels"], network["resolution"], network["resolution"]],
        "num_classes": network["num_classes"],
        **limits,
        "source_class": f"{outer.class_name}/{outer.modules['model'].class_name}",
        "module_src_sha256": outer.source_sha256,
    }


def architecture(network: Module) -> dict[str, Any]:
    """The architecture of a SongUNet or DhariwalUNet, for `dmd.models.networks.build`.

    Raises:
        ValueError: the class is another one, or has arguments that this package's networks do not have.
    """
    arguments = _Arguments(network, _defaults(network))
    kind = "adm" if network.class_name == "DhariwalUNet" else _style(arguments)
    arguments.refuse_unknown("img_resolution", "in_channels", "out_channels")
    channels, resolution = arguments.integer("in_channels"), arguments.integer("img_resolution")
    if arguments.integer("out_channels") != channels:
        raise ValueError(f"out_channels differs from in_channels, {channels}")
    if arguments.number("channel_mult_emb") != 4:
        raise ValueError("channel_mult_emb must be 4")
    multipliers = arguments.integers("channel_mult")
    levels = [resolution >> level for level in range(len(multipliers))]
    return {
        "kind": kind,
        "resolution": resolution,
        "channels": channels,
        "width": arguments.integer("model_channels"),
        "multipliers": multipliers,
        "blocks": arguments.integer("num_blocks"),
        "attention": [level for level in arguments.integers("attn_resolutions") if level in levels],
        "num_classes": arguments.integer("label_dim"),
        "dropout": arguments.number("dropout"),
        "augment": arguments.integer("augment_dim"),
    }


def _defaults(network: Module) -> dict[str, Any]:
    """Default arguments of a network's class; ValueError for another class."""
    if network.class_name == "DhariwalUNet":
        return COMMON | DHARIWAL
    if network.class_name == "SongUNet":
        return COMMON | SONG | STYLE_DEFAULTS
    raise ValueError(f"network {network.class_name!r} is not supported; supported are SongUNet and DhariwalUNet")


def _check_attributes(module: Module, kind: str, name: str = "", above: str = "") -> None:
    """ValueError unless the modules of a network compute with the numbers that our network of this kind has.

    Args:
        name: of the module.
        above: name of the module that holds it; blocks that resample are named for it.
    """
    family, where = FAMILIES[kind], f"{module.class_name} {name}".strip()
    known: dict[str, Any] = {}
    match module.class_name:
        case "UNetBlock":
            channels = module.modules["qkv"].tensors["weight"].shape[1] if "qkv" in module.modules else 0
            heads = num_heads(channels, family.head_channels) if channels else 0
            known = {"skip_scale": family.gain, "adaptive_scale": family.scale_shift, "num_heads": heads}
        case "GroupNorm":
            known = {"eps": family.eps, "num_groups": min(32, len(module.tensors["weight"]) // 4)}
        case "PositionalEmbedding":
            known = {"max_positions": 10000, "endpoint": not family.late_label}
        case "Conv2d":
            branch, resamples = name.endswith("_residual"), name in ("conv0", "skip")
            known = {"fused_resample": branch, "down": branch or (resamples and above.endswith("_down"))}
            known["up"] = resamples and above.endswith("_up")
    _check_values(where, module.attributes, known)
    if "resample_filter" in module.tensors:
        row = torch.tensor([1.0, 3.0, 3.0, 1.0] if family.binomial else [1.0, 1.0])
        taps, found = row.outer(row) / row.sum().square(), module.tensors["resample_filter"].float()
        if found.shape[-2:] != taps.shape or not torch.allclose(found, taps):
            raise ValueError(f"{where}: resample_filter is not supported: only that of {kind} is")
    for each, child in module.modules.items():
        _check_attributes(child, kind, each, name)


def _check_values(where: str, values: dict[str, Any], known: dict[str, Any]) -> None:
    """ValueError for a value that is set, is not harmless, and differs from the one that is known."""
    for key, value in values.items():
        if value is None or key in HARMLESS:
            continue
        plain = list(value) if isinstance(value, tuple) else value
        if key not in known or not (plain == known[key] or _is_close(plain, known[key])):
            shown = f"{value!r:.80}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            only = f"only {known[key]!r:.80} is" if key in known else "the name is unknown"
            raise ValueError(f"{where}: {key[:80]} {shown} is not supported: {only}")


def _is_close(value: Any, known: Any) -> bool:
    numbers = isinstance(value, int | float) and isinstance(known, int | float)
    return numbers and math.isclose(value, known, rel_tol=1e-6)


def _style(arguments: "_Arguments") -> str:
    values = [arguments.plain(name) for name in STYLE_DEFAULTS]
    for kind, style in STYLE_BY_KIND.items():
        if values == style:
            return kind
    raise ValueError(f"SongUNet with {dict(zip(STYLE_DEFAULTS, values, strict=True))} is neither DDPM++ nor NCSN++")


class _Arguments:
    """Arguments of a module with the defaults of its class; each is checked when it is read."""

    def __init__(self, module: Module, defaults: dict[str, Any]) -> None:
        if module.positional:
            raise ValueError(f"{module.class_name} has positional arguments, whose names are unknown")
        self._class = module.class_name
        self._values = {**defaults, **module.arguments}
        self._known = set(defaults)

    def refuse_unknown(self, *names: str) -> None:
        """ValueError for arguments other than `names` and those with a default."""
        if unknown := sorted(set(self._values) - self._known - set(names)):
            raise ValueError(f"{self._class} has unknown arguments: {', '.join(unknown)[:200]}")

    def plain(self, name: str) -> Any:
        """Text, a number, or a list of integers."""
        value = self._values.get(name)
        return self.integers(name) if isinstance(value, list | tuple) else self._get(name, str, int, float)

    def integer(self, name: str) -> int:
        """An integer from 0 to a million."""
        value = self._get(name, int)
        if not 0 <= value <= 10**6:
            raise ValueError(f"{self._class}.{name}: the value is out of range")
        return value

    def number(self, name: str) -> float:
        """A number from 0 to a million, or infinity."""
        value = self._get(name, int, float)
        if not (0 <= value <= 10**6 or value == math.inf):
            raise ValueError(f"{self._class}.{name}: the value is out of range")
        return float(value)

    def integers(self, name: str) -> list[int]:
        """A list of at most 16 positive integers."""
        values = self._get(name, list, tuple)
        if len(values) > 16 or not all(type(value) is int and 0 < value <= 10**6 for value in values):
            raise ValueError(f"{self._class}.{name}: not a list of at most 16 positive integers")
        return list(values)

    def _get(self, name: str, *kinds: type) -> Any:
        value = self._values.get(name)
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self._class}.{name}: expected {expected}, found {type(value).__name__}")
        return value
