"""Teachers from released EDM files: what the reference computes, an independent network, refusals.

tests/edm_vectors holds tiny random teachers in the released layout, and what the reference implementation made of them.
"""

import json
import math
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dmd.data import manifest, shards
from dmd.importers import edm, edm_pickle
from dmd.importers.edm_pickle import Module
from dmd.models import loading
from dmd.provenance import files, record, tensor_files
from dmd.sampling.default_solver import within_range
from dmd.sampling.noise import seeded_noise
from dmd.sampling.solvers import solve
from dmd.stages import pairs, sample, teacher
from tests.edm_files import make_edm_pickle

VECTORS = Path(__file__).parents[1] / "edm_vectors"
NAMES = ["adm-cond", "ddpmpp-cond", "ddpmpp-uncond", "ncsnpp-uncond"]
SMALL: dict[str, Any] = {"resolution": 8, "width": 16, "multipliers": [1, 4], "blocks": 1, "attention": [4]}
HEUN = {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def imported(source: Path, folder: Path, **numbers: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Denoiser and metadata of a released file after stage teacher; a whole digest leaves no record beside it."""
    if source.is_relative_to(VECTORS):
        numbers = {"sha256": files.sha256(source), **numbers}
    teacher.run(
        output=folder / "denoiser.safetensors", table=folder / "log.parquet", kind="edm", source=source, **numbers
    )
    return loading.load_denoiser(folder / "denoiser.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_imported_teacher_equals_the_reference(name, tmp_path):
    denoiser, metadata = imported(VECTORS / f"{name}.pkl", tmp_path)
    path = VECTORS / f"{name}.expected.safetensors"
    expected = load_file(path)
    with safe_open(path, "pt") as stream:
        reference_calls = int(stream.metadata()["heun_network_calls"])
    num = len(expected["x"])
    label = expected["label"].argmax(1) if "label" in expected else torch.full((num,), -1)
    with torch.no_grad():
        denoised = denoiser(expected["x"], expected["sigma"], label)
    torch.testing.assert_close(denoised, expected["denoised"], rtol=0, atol=2e-5)
    one_step, calls = solve(denoiser, expected["noise"], label, {"name": "student", "calls": {"sigmas": [80.0]}})
    torch.testing.assert_close(one_step, expected["one_step"], rtol=0, atol=2e-5)
    assert calls == 1
    assert within_range({"name": "heun", "steps": 18, "rho": 7.0}, metadata, path) == HEUN
    image, calls = solve(denoiser, expected["noise"], label, HEUN)
    torch.testing.assert_close(image.double(), expected["heun18"], rtol=0, atol=1e-4)
    assert calls == reference_calls == 35


@pytest.mark.parametrize("name", NAMES)
def test_imported_file_says_what_it_is(name, tmp_path):
    source = shutil.copy(VECTORS / f"{name}.pkl", tmp_path / f"{name}.pkl")
    _, metadata = imported(source, tmp_path, sha256=files.sha256(source)[:8])
    with safe_open(VECTORS / f"{name}.expected.safetensors", "pt") as stream:
        known = json.loads(stream.metadata()["kwargs"])
    assert metadata["kind"] == "edm" and metadata["sigma_data"] == 0.5
    assert metadata["preconditioning"] == {"kind": "edm"}
    assert metadata["shape"] == [3, 16, 16] and metadata["num_classes"] == known["label_dim"]
    assert metadata["source_sha256"] == metadata["inputs"]["source"] == files.sha256(source)
    network = metadata["network"]
    assert network["kind"] == name.partition("-")[0]
    assert [network["width"], network["multipliers"]] == [known["model_channels"], known["channel_mult"]]
    assert "sigma_max" not in metadata  # EDM's own file limits nothing
    assert record.read(tmp_path / "denoiser.safetensors")["inputs"] == {str(source): files.sha256(source)}


def test_import_from_nothing_has_the_same_bytes_again(tmp_path):
    for name in ("a", "b"):
        imported(VECTORS / "ddpmpp-cond.pkl", tmp_path / name)
    one, other = ((tmp_path / name / "denoiser.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other
    stored, _ = tensor_files.load(tmp_path / "a" / "denoiser.safetensors")
    assert all(name.startswith("ema.") and "resample_filter" not in name for name in stored)


@pytest.mark.parametrize("family", ["adm", "ddpmpp", "ncsnpp"])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_made_file_gives_the_network_it_was_made_from(family, num_classes, tmp_path):
    augment = 0 if family == "adm" else 9
    source = tmp_path / "made.pkl"
    network = make_edm_pickle(source, family=family, num_classes=num_classes, augment=augment, **SMALL)
    denoiser, metadata = imported(source, tmp_path)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 3, 8, 8, generator=generator)
    condition, label = torch.tensor([-1.0, 0.2, 1.0]), torch.arange(3) if num_classes else torch.full((3,), -1)
    with torch.no_grad():
        assert torch.equal(denoiser.network(image, condition, label), network(image, condition, label))
    assert all(bool(parameter.ne(0).all()) for parameter in denoiser.parameters())
    assert metadata["network"]["kind"] == family


def test_source_code_in_a_file_is_not_run_and_leaves_a_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "made.pkl"
    make_edm_pickle(source, family="adm", source="open('executed', 'w')", **SMALL)
    _, metadata = imported(source, tmp_path / "teacher")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "code").write_text("open('executed', 'w')")
    assert metadata["module_src_sha256"] == files.sha256(tmp_path / "code")


def test_ve_file_predicts_the_noise_and_limits_sigma(tmp_path):
    source = tmp_path / "ve.pkl"
    network = make_edm_pickle(source, family="ncsnpp", preconditioning="VEPrecond", **SMALL)
    denoiser, metadata = imported(source, tmp_path)
    assert [metadata[key] for key in ("preconditioning", "sigma_min", "sigma_max")] == [{"kind": "ve"}, 0.02, 100.0]
    image, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 30.0])
    label = torch.full((2,), -1)
    with torch.no_grad():
        expected = image + sigma[:, None, None, None] * network(image, (0.5 * sigma).log(), label)
        torch.testing.assert_close(denoiser(image, sigma, label), expected)


@pytest.fixture(scope="module")
def ve_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ve")
    make_edm_pickle(folder / "ve.pkl", family="ncsnpp", preconditioning="VEPrecond", **SMALL)
    imported(folder / "ve.pkl", folder)
    return folder / "denoiser.safetensors"


def karras_heun(denoiser, noise: torch.Tensor, low: float, high: float, steps: int) -> torch.Tensor:
    """Algorithm 1 of Karras et al. 2022 without churn, on the levels of their Eq. 5."""
    ends = high ** (1 / 7), low ** (1 / 7)
    levels = [(ends[0] + index / (steps - 1) * (ends[1] - ends[0])) ** 7 for index in range(steps)] + [0.0]
    label, x = torch.full((len(noise),), -1), noise.double() * levels[0]
    slope = lambda x, t: (x - denoiser(x.float(), torch.full((len(x),), t), label).double()) / t  # noqa: E731
    for now, after in zip(levels, levels[1:], strict=False):
        first = slope(x, now)
        end = x + (after - now) * first
        x = x + (after - now) * (first + slope(end, after)) / 2 if after else end
    return x


STAGES: dict[str, Any] = {
    "pairs": lambda teacher, numbers: pairs.run(teacher=teacher, **numbers),
    "sample": lambda teacher, numbers: sample.run(denoiser=teacher, weights="ema", num_samples=2, **numbers),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ends", [{}, {"sigma_min": None, "sigma_max": None}, {"sigma_min": 0.02, "sigma_max": 100.0}])
def test_ve_teacher_is_sampled_within_its_own_range(stage, ends, ve_teacher, tmp_path):
    block = tmp_path / "blocks" / "00000-00000.parquet"
    numbers = {"first_seed": 7, "batch_size": 2, "labels": "random", "shard_size": 2, "first": 0, "last": 0}
    solver = {"name": "heun", "steps": 5, "rho": 7.0, **ends}
    STAGES[stage](ve_teacher, numbers | {"output": block, "solver": solver})
    high = ends.get("sigma_max") or 80.0
    assert manifest.read(block).metadata["spec"]["solver"] == solver | {"sigma_min": 0.02, "sigma_max": high}
    denoiser, metadata = loading.load_denoiser(ve_teacher)
    noise, _ = seeded_noise(range(7, 9), tuple(metadata["shape"]), num_classes=0)
    with torch.no_grad():
        expected = karras_heun(denoiser, noise, 0.02, high, 5)
        below = karras_heun(denoiser, noise, 0.002, high, 5)
    images = torch.stack([torch.tensor(item["image"]) for _, item in shards.read(tmp_path / "00000.tar")])
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-4)
    assert (images - below).abs().max() > 1e-3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"sigma_min": 0.002}, r"{}.solver.sigma_min: 0.002 is outside 0.02 .. 100, the noise levels that"),
        ({"sigma_min": 200.0}, r"{}.solver.sigma_min: 200 is outside 0.02 .. 100"),
        ({"sigma_max": 100.1}, r"{}.solver.sigma_max: 100.1 is outside 0.02 .. 100"),
        ({"sigma_max": 0.01}, r"{}.solver.sigma_max: 0.01 is outside 0.02 .. 100"),
        ({"sigma_min": 90.0}, r"{}.solver.sigma_min: 90 is above sigma_max 80"),
    ],
)
def test_levels_outside_the_teachers_range_are_refused(stage, ends, message, ve_teacher, tmp_path):
    numbers = {"first_seed": 7, "batch_size": 2, "labels": "random", "shard_size": 2, "first": 0, "last": 0}
    solver = {"name": "euler", "steps": 5, "rho": 7.0, **ends}
    with pytest.raises(ValueError, match=message.format(stage)):
        STAGES[stage](ve_teacher, numbers | {"output": tmp_path / "blocks" / "0.parquet", "solver": solver})
    assert not list(tmp_path.rglob("*.tar"))


def test_class_defaults_stand_where_a_file_is_silent(tmp_path):
    ends = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}
    found = edm.architecture(Module("DhariwalUNet", dict(ends)))
    assert found == {
        "kind": "adm", "resolution": 64, "channels": 3, "width": 192, "multipliers": [1, 2, 3, 4], "blocks": 3,
        "attention": [32, 16, 8], "num_classes": 1000, "dropout": 0.1, "augment": 0,
    }  # fmt: skip
    found = edm.architecture(Module("SongUNet", ends | {"img_resolution": 32}))
    assert found == {
        "kind": "ddpmpp", "resolution": 32, "channels": 3, "width": 128, "multipliers": [1, 2, 2, 2], "blocks": 4,
        "attention": [16], "num_classes": 1000, "dropout": 0.1, "augment": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preconditioning": "iDDPMPrecond"}, "preconditioning 'iDDPMPrecond' is not supported"),
        ({"encoder_type": "skip"}, "SongUNet with .*'encoder_type': 'skip'.* is neither"),
        ({"channel_mult_emb": 2}, "channel_mult_emb must be 4"),
        ({"num_blocks": "two"}, "SongUNet.num_blocks: expected int, found str"),
        ({"num_blocks": 2}, "holds another architecture: Missing key"),
        ({"num_blocks": 2000}, "holds another architecture: 4000 blocks for [0-9]+ tensors"),
        ({"depth": 3}, "SongUNet has unknown arguments: depth"),
        ({"channel_mult": [2] * 40}, "SongUNet.channel_mult: not a list of at most 16"),
        ({"out_channels": 6}, "out_channels differs from in_channels"),
        *(({"dropout": odd}, "SongUNet.dropout: the value is out of range") for odd in (10**400, math.nan, -0.1)),
        ({"dropout": math.inf}, "dropout: inf is no finite number"),
        ({"dropout": True}, "SongUNet.dropout: expected int or float, found bool"),
        ({"channel_mult_emb": 10**400}, "SongUNet.channel_mult_emb: the value is out of range"),
        *(({"num_blocks": odd}, "SongUNet.num_blocks: the value is out of range") for odd in (10**400, -1)),
        *(({"num_blocks": odd}, "SongUNet.num_blocks: expected int, found") for odd in (True, 1.0, math.nan, None)),
        ({"label_dim": -1}, "SongUNet.label_dim: the value is out of range"),
        ({"attn_resolutions": [True]}, "SongUNet.attn_resolutions: not a list of at most 16 positive integers"),
        ({"attn_resolutions": [10**400]}, "SongUNet.attn_resolutions: not a list of at most 16 positive integers"),
    ],
)
def test_network_that_none_of_ours_equals_is_named(changed, message, tmp_path):
    make_edm_pickle(tmp_path / "made.pkl", family="ddpmpp", **{**SMALL, **changed})
    with pytest.raises(ValueError, match=message) as refused:
        imported(tmp_path / "made.pkl", tmp_path / "teacher")
    assert "made.pkl" in str(refused.value) and "\n" not in str(refused.value)
    assert not list((tmp_path / "teacher").glob("*"))


@pytest.mark.parametrize("kind", ["EDMPrecond", "VEPrecond"])
@pytest.mark.parametrize("odd", [10**400, -(10**400), math.nan, -math.inf, -1, True, "1", None, [1]])
def test_noise_levels_of_a_file_are_numbers_in_range(kind, odd):
    network = Module("DhariwalUNet", {"img_resolution": 8, "in_channels": 3, "out_channels": 3})
    for name in edm.PRECONDITIONING[kind][1]:
        with pytest.raises(ValueError, match=f"{kind}.{name}: "):
            edm._facts(Module(kind, {name: odd}, modules={"model": network}))
    for odds in ({"sigma_min": 5, "sigma_max": 5}, {"sigma_min": math.inf}):
        with pytest.raises(ValueError, match=f"{kind}: .* or sigma_min not below sigma_max"):
            edm._facts(Module(kind, odds, modules={"model": network}))


def test_import_refuses_another_file_than_the_pinned_one(tmp_path):
    with pytest.raises(ValueError, match="adm-cond.pkl has sha256 .*00000000"):
        imported(VECTORS / "adm-cond.pkl", tmp_path, sha256="00000000")
    with pytest.raises(ValueError, match="nothing.pkl is missing"):
        imported(tmp_path / "nothing.pkl", tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    make_edm_pickle(tmp_path / "made.pkl", family="ddpmpp", **SMALL)
    content = (tmp_path / "made.pkl").read_bytes()
    place = content.rindex(b"\x00\x00\x00\x00\x00\x00\x00", 0, len(content) - 4000)
    broken = bytearray(content)
    broken[place + 7 : place + 11] = b"\x00\x00\xc0\x7f"
    (tmp_path / "made.pkl").write_bytes(broken)
    with pytest.raises(ValueError, match="weights that are not finite"):
        imported(tmp_path / "made.pkl", tmp_path / "teacher")


PARTS = {"norm0": "norm1", "conv0": "conv1", "affine": "time_emb_proj", "norm1": "norm2", "conv1": "conv2"}
PARTS |= {"skip": "conv_shortcut", "norm2": "group_norm", "proj": "to_out.0"}
ENDS = {"map_layer0": "time_embedding.linear_1", "map_layer1": "time_embedding.linear_2", "enc.8x8_conv": "conv_in"}
ENDS |= {"out_norm": "conv_norm_out", "out_conv": "conv_out"}
BLOCKS = {
    "enc.8x8_block0": "down_blocks.0.resnets.0",
    "enc.4x4_down": "down_blocks.0.downsamplers.0",
    "enc.4x4_block0": "down_blocks.1.resnets.0",
    "dec.4x4_in0": "mid_block.resnets.0",
    "dec.4x4_in1": "mid_block.resnets.1",
    "dec.4x4_block0": "up_blocks.0.resnets.0",
    "dec.4x4_block1": "up_blocks.0.resnets.1",
    "dec.8x8_up": "up_blocks.0.upsamplers.0",
    "dec.8x8_block0": "up_blocks.1.resnets.0",
    "dec.8x8_block1": "up_blocks.1.resnets.1",
}


def converted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ADM weights of the levels 8 and 4 under the names of diffusers' UNet2DModel."""
    found = {"class_embedding.weight": state["map_label.weight"].T}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        block, _, part = layer.rpartition(".")
        if layer in ENDS:
            found[f"{ENDS[layer]}.{kind}"] = value
        elif part in ("qkv", "proj", "norm2"):
            attention = BLOCKS[block].replace("resnets", "attentions")
            flat = value.flatten(1) if value.ndim > 1 else value
            if part == "qkv":  # rows ordered (head, channel in head, q | k | v)
                for number, letter in enumerate("qkv"):
                    found[f"{attention}.to_{letter}.{kind}"] = flat[number::3]
            else:
                found[f"{attention}.{PARTS[part]}.{kind}"] = flat
        elif part in PARTS:
            found[f"{BLOCKS[block]}.{PARTS[part]}.{kind}"] = value
    return found


def test_adm_teacher_equals_a_converted_diffusers_network(tmp_path):
    from dmd import torchvision_operators

    torchvision_operators.ensure()
    from diffusers import UNet2DModel

    shape = SMALL | {"width": 128, "multipliers": [1, 2]}
    make_edm_pickle(tmp_path / "made.pkl", family="adm", num_classes=7, seed=3, **shape)
    denoiser, _ = imported(tmp_path / "made.pkl", tmp_path)
    other = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(128, 256), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), downsample_type="resnet", upsample_type="resnet",
        attention_head_dim=64, norm_num_groups=32, norm_eps=1e-5, resnet_time_scale_shift="scale_shift",
        time_embedding_type="positional", flip_sin_to_cos=True, freq_shift=0, num_class_embeds=7,
        attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    other.load_state_dict(converted(denoiser.network.state_dict()))
    generator = torch.Generator().manual_seed(0)
    image, label = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 6, 3, 3])
    condition = torch.tensor([0.002, 0.5, 5.0, 80.0]).log() / 4
    with torch.no_grad():
        found = denoiser.network(image, condition, label)
        expected = other(image, condition, class_labels=label).sample
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["adm-cond", "ddpmpp-cond", "ncsnpp-uncond"])
@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("", "sigma_data", 1.0),
        ("", "sigma_max", 50.0),
        ("", "img_resolution", 32),
        ("", "label_dim", 7),
        ("", "secret", 1),
        ("model", "secret", 3),
        ("model.map_noise", "secret", 1),
        ("model.enc.16x16_block0", "skip_scale", 0.9),
        ("model.enc.16x16_block0", "adaptive_scale", 0.5),
        ("model.enc.8x8_block0", "num_heads", 3),
        ("model.enc.16x16_block0.norm0", "eps", 1e-3),
        ("model.enc.16x16_block0.norm0", "num_groups", 2),
        ("model.enc.16x16_block0.conv0", "down", True),
        ("model.enc.8x8_down.conv0", "down", False),
        ("model.dec.16x16_up.conv0", "up", False),
        ("model.dec.16x16_up.conv0", "fused_resample", True),
    ],
)
def test_attribute_that_would_change_the_numbers_is_refused_by_name(family, place, key, value):
    outer = edm_pickle.read(VECTORS / f"{family}.pkl")
    module = reduce(lambda found, name: found.modules[name], filter(None, place.split(".")), outer)
    module.attributes[key] = value
    with pytest.raises(ValueError, match=f"{module.class_name}.*: {key} {value} is not supported") as refused:
        edm._facts(outer)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"), [("img_channels", 1), ("label_dim", 7), ("model_type", "DhariwalUNet"), ("num_blocks", 3)]
)
def test_arguments_of_the_outer_class_are_those_of_the_network(key, value):
    outer = edm_pickle.read(VECTORS / "ddpmpp-cond.pkl")
    outer.arguments[key] = value
    with pytest.raises(ValueError, match=f"EDMPrecond: {key} .*is not supported|unknown"):
        edm._facts(outer)


@pytest.mark.parametrize("family", ["adm-cond", "ddpmpp-cond", "ncsnpp-uncond"])
def test_filter_and_noise_features_are_those_of_the_network(family):
    outer = edm_pickle.read(VECTORS / f"{family}.pkl")
    before = edm._facts(outer)
    changed = {"use_fp16": True, "label_dropout": 0.1, "dropout": 0.5, "new": None}
    outer.modules["model"].attributes.update(changed)
    assert edm._facts(outer) == before
    if family != "ncsnpp-uncond":
        noise = outer.modules["model"].modules["map_noise"]
        for key, value in (("max_positions", 1000), ("endpoint", not noise.attributes["endpoint"])):
            kept, noise.attributes[key] = noise.attributes[key], value
            with pytest.raises(ValueError, match=f"PositionalEmbedding map_noise: {key} {value} is not supported"):
                edm._facts(outer)
            noise.attributes[key] = kept
    conv = outer.modules["model"].modules["enc"].modules["8x8_down"].modules["conv0"]
    conv.tensors["resample_filter"] = conv.tensors["resample_filter"].flip(0) * 2
    with pytest.raises(ValueError, match="Conv2d conv0: resample_filter is not supported"):
        edm._facts(outer)
