"""What a description of a network asks for is bounded on every way in; nothing of these takes time or memory."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dmd
from dmd.importers import pipeline_files
from dmd.models import loading, sizes
from dmd.models.autoencoder import Codec
from dmd.models.networks import build
from dmd.models.networks.published_architectures import CIFAR10, IMAGENET64, SD15, SD15_AUTOENCODER, SD15_TEXT
from dmd.models.preconditioning import preconditioning
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling import schedulers

UNET: dict[str, Any] = {"kind": "ddpmpp", "resolution": 4, "channels": 1, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [], "num_classes": 2}
MLP: dict[str, Any] = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 8, "layers": 2, "num_classes": 0}
UNET2D: dict[str, Any] = {"sample_size": 8, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
UNET2D |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
HUGE = (10**7, 1 << 40, 10**400, -(10**400))
ODD = (
    math.nan,
    math.inf,
    "a",
    None,
    {},
    [],
    [[]],
    {"a": {"b": {"c": {"d": {"e": {}}}}}},
    [1] * 10**6,
    "a" * 10**6,
    True,
)
ARCHITECTURES = [
    *({**UNET, key: value} for key in UNET for value in HUGE),
    *({**MLP, key: value} for key in MLP for value in HUGE),
    *({"kind": "unet2d", "config": {**UNET2D, key: value}} for key in UNET2D for value in HUGE),
    *({**UNET, key: [value]} for key in ("multipliers", "attention") for value in HUGE),
    {**UNET, "multipliers": [1] * 10**7, "resolution": 1 << 20},
    {**UNET, "blocks": 1025},
    {**UNET, "multipliers": [1] * 16, "resolution": 1 << 16, "blocks": 65},
    {**MLP, "layers": 1025},
    {"kind": "unet2d-condition", "config": {**SD15["config"], "transformer_layers_per_block": [[300, 300]] * 4}},
    {"kind": "sd3", "config": {"num_layers": 10**6}},
    {"kind": ["adm"]},
    {"kind": "unet2d", "config": 3},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: f"{each!s:.60}")
def test_huge_network_is_refused_before_it_is_built(architecture):
    with torch.device("meta"), pytest.raises(ValueError, match="^network"):
        build(architecture)


@pytest.mark.parametrize("key", [*UNET, *(f"config.{key}" for key in UNET2D)])
def test_any_odd_value_is_used_or_refused_with_a_message(key):
    for odd in ODD:
        name = key.removeprefix("config.")
        architecture = {"kind": "unet2d", "config": {**UNET2D, name: odd}} if name != key else {**UNET, key: odd}
        try:
            with torch.device("meta"):
                build(architecture)
        except ValueError as error:
            assert str(error) and len(str(error)) < 2000


def test_published_networks_are_within_the_bounds():
    for architecture in (CIFAR10, IMAGENET64, SD15["config"], SD15_AUTOENCODER["config"], SD15_TEXT):
        sizes.check("network", architecture)
    sizes.check("scheduler", {"trained_betas": [0.1] * 1000, "num_train_timesteps": 1000})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "discrete", "alphas_cumprod": [0.5] * 10**7, "prediction": "epsilon"}, "10000000 items, more than"),
        ({"kind": "discrete", "alphas_cumprod": ["a", "b"], "prediction": "epsilon"}, "alphas_cumprod: it needs"),
        ({"kind": "discrete", "alphas_cumprod": [0.5, math.nan], "prediction": "epsilon"}, "no finite number"),
        ({"kind": "discrete", "alphas_cumprod": [0.5, 0.1]}, "prediction.* is missing"),
        ({"kind": "flow", "num_levels": 10**8}, "num_levels: the number is beyond 10000"),
        ({"kind": "edm", "condition_scale": 10**400}, "beyond"),
        ({"kind": "edm", "odd": 1}, "odd"),
        ({"kind": ["edm"]}, "kind"),
    ],
)
def test_noise_levels_are_bounded(section, message):
    with pytest.raises(ValueError, match=message):
        preconditioning(section, sigma_data=0.5)


def test_schedulers_are_bounded_on_every_way_in(tmp_path: Path):
    for odd in ({"num_train_timesteps": 10**8}, {"trained_betas": [0.1] * 10**5}, {"beta_start": math.nan}):
        config = {"_class_name": "DDIMScheduler", **odd}
        with pytest.raises(ValueError, match=f"scheduler: {next(iter(odd))}: "):
            schedulers.scheduler(config, {"name": "ddim", "steps": 4})
        path = tmp_path / "scheduler_config.json"
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{path}.*: {next(iter(odd))}\\b"):
            pipeline_files.scheduler_preconditioning(path, tmp_path / "model_index.json", ("DDIMScheduler",))


def test_autoencoder_of_many_layers_is_refused():
    with pytest.raises(ValueError, match="AutoencoderKL: layers_per_block ask for"):
        Codec(kind="full", config={**SD15_AUTOENCODER["config"], "layers_per_block": 10**5})


@pytest.mark.parametrize(
    "facts",
    [
        {"network": {**MLP, "layers": 10**7}},
        {"network": {**UNET, "blocks": 50_000}},
        {"network": {"kind": "unet2d", "config": {**UNET2D, "layers_per_block": 10**6}}},
        {"network": UNET, "shape": [1, 1 << 40, 4]},
        {"network": UNET, "num_classes": 1 << 62},
        {"network": UNET, "sigma_data": 10**400},
        {"network": UNET, "preconditioning": {"kind": "flow", "num_levels": 10**8}},
    ],
)
def test_file_of_a_huge_network_is_refused_by_name(tmp_path, facts):
    state = {f"ema.{name}": value for name, value in build(UNET).state_dict().items()}
    whole = {"kind": "train", "sigma_data": 0.5, "shape": [1, 4, 4], "num_classes": 2, **facts}
    tensor_files.save(tmp_path / "a.safetensors", state, whole)
    with pytest.raises(ValueError, match=str(tmp_path / "a.safetensors")):
        dmd.load(tmp_path / "a.safetensors", device="cpu")


def test_file_of_an_odd_autoencoder_or_text_encoder_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    for kind, key, load in (
        ("autoencoder", "autoencoder", loading.load_codec),
        ("text-encoder", "text_encoder", loading.load_text),
    ):
        for odd in ({}, {key: 3}, {key: {}}, {key: {"kind": "full", "config": 3}}, {key: {"config": SD15_TEXT}}):
            tensor_files.save(path, {"a": torch.ones(1)}, {"kind": kind, **odd})
            with pytest.raises(ValueError, match=f"^{path} cannot be read as"):
                load(path)


def test_calls_are_bounded():
    for odd in ({"sigmas": [float(level) for level in range(10**5, 0, -1)]}, {"sigmas": [10**400]}):
        with pytest.raises(ValueError, match="calls: sigmas"):
            Calls.of(odd)
