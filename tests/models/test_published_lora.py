"""LoRA files of others: the network computes what that of stock diffusers computes once it has loaded them."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dmd import torchvision_operators
from dmd.models import loading, published_lora
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from tests.stable_diffusion_files import make_stable_diffusion

NAME = "pytorch_lora_weights.safetensors"
LAYERS = ["to_q", "to_out.0", "ff.net.2", "conv1", "time_emb_proj", "downsamplers.0.conv", "proj_in", "conv_in"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_stable_diffusion(tmp_path_factory.mktemp("lora") / "sd")


@pytest.fixture
def pipeline(folder):
    torchvision_operators.ensure()
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """A LoRA of rank 4 with alpha 6, as diffusers saves one."""
    torchvision_operators.ensure()
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True).unet
    config = LoraConfig(r=4, lora_alpha=6, target_modules=LAYERS, init_lora_weights=False)
    torch.manual_seed(0)
    unet.add_adapter(config)
    state = get_peft_model_state_dict(unet)
    place = tmp_path_factory.mktemp("written")
    metadata = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()}
    StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=state, **metadata)
    return place / NAME


def kohya(written, place):
    """The same in the layout of kohya, as LCM-LoRA is distributed: alpha beside each layer."""
    found = {}
    for name, value in load_file(written).items():
        layer, part, _ = name.rsplit(".", 2)
        key = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
        found[f"{key}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(6.0)
    save_file(found, place / NAME)
    return place / NAME


def plain(written, place):
    """Keys of diffusers before peft, without any alpha: it is the rank."""
    rename = {"lora_A": "lora.down", "lora_B": "lora.up"}
    found = {}
    for name, value in load_file(written).items():
        layer, part, _ = name.rsplit(".", 2)
        found[f"{layer}.{rename[part]}.weight"] = value
    save_file(found, place / NAME)
    return place / NAME


def own(unet) -> Denoiser:
    """The network of a pipeline as ours."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    network = build({"kind": "unet2d-condition", "config": config})
    network.load_state_dict({f"unet.{name}": value for name, value in unet.state_dict().items()})
    return Denoiser(network, sigma_data=1.0).requires_grad_(False).eval()


@pytest.mark.parametrize(("layout", "scale"), [("peft", 1.0), ("peft", 0.5), ("kohya", 1.0), ("plain", 1.0)])
def test_every_layout_adds_what_stock_diffusers_adds(pipeline, written, tmp_path, layout, scale):
    path = written if layout == "peft" else {"kohya": kohya, "plain": plain}[layout](written, tmp_path)
    ours = own(pipeline.unet)
    given = torch.randn(2, 4, 16, 16), torch.tensor([10.0, 700.0]), torch.randn(2, 7, 32)
    before = ours.predict(*given)
    loading.add_adapter(ours, published_lora.load(path, scale=scale), path)
    pipeline.load_lora_weights(path.parent, weight_name=NAME, adapter_name="added", local_files_only=True)
    pipeline.set_adapters("added", scale)
    pipeline.unet.eval()  # diffusers leaves a dropout of the adapter on
    with torch.no_grad():
        expected = pipeline.unet(given[0], given[1], encoder_hidden_states=given[2]).sample
    torch.testing.assert_close(ours.predict(*given), expected, rtol=1e-4, atol=1e-5)
    assert (before - expected).abs().max() > 1e-2


def test_files_that_hold_other_things_are_refused(written, tmp_path):
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        published_lora.load(tmp_path / "none.safetensors", scale=1.0)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04 no safetensors")
    with pytest.raises(ValueError, match="pickle.safetensors cannot be read as safetensors"):
        published_lora.load(tmp_path / "pickle.safetensors", scale=1.0)
    weights = load_file(written)
    for name, words in {
        "unet.conv_in.weight": "is not part of a plain LoRA",
        "text_encoder.layer.lora_A.weight": "is no LoRA of the network",
        "unet.conv_in.lora_B.bias": "is no LoRA of the network",
    }.items():
        save_file(weights | {name: torch.zeros(4, 4)}, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=f"odd.safetensors: {name} {words}"):
            published_lora.load(tmp_path / "odd.safetensors", scale=1.0)


def test_a_network_of_other_layers_is_refused(pipeline, written):
    added = published_lora.load(written, scale=1.0)
    added = {name.replace("conv_in", "conv_before"): value for name, value in added.items()}
    with pytest.raises(ValueError, match="adapter of unet.conv_before: .* the layer is missing"):
        loading.add_adapter(own(pipeline.unet), added, written)


def headed(written, place, tensors=None, **changed):
    """The file with another header."""
    with safe_open(written, framework="pt") as stream:
        header = json.loads(stream.metadata()["lora_adapter_metadata"])
    header = {key: value for key, value in {**header, **changed}.items() if value != "absent"}
    save_file(
        tensors or load_file(written), place / NAME, {"lora_adapter_metadata": json.dumps(header), "format": "pt"}
    )
    return place / NAME


@pytest.mark.parametrize(
    "changed",
    [
        {"unet.use_rslora": True},
        {"unet.lora_alpha": 3, "unet.use_rslora": True},
        {"unet.alpha_pattern": {"to_q": 12, "conv_in": 1}},
        {"unet.alpha_pattern": {"to_q": 12}, "unet.use_rslora": True},
        {"unet.rank_pattern": {"to_q": 4}, "unet.r": 4},
        {"unet.lora_dropout": 0.5, "unet.inference_mode": True, "unet.init_lora_weights": "gaussian"},
        {"text_encoder.r": 8, "text_encoder.use_dora": True},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_field_of_a_header_adds_what_stock_diffusers_adds(pipeline, written, tmp_path, changed):
    path = headed(written, tmp_path, **changed)
    test_every_layout_adds_what_stock_diffusers_adds(pipeline, path, tmp_path, "peft", 1.0)


@pytest.mark.parametrize("layout", ["peft", "kohya", "plain"])
def test_ranks_that_differ_are_those_of_stock_diffusers(pipeline, written, tmp_path, layout):
    """Some layers have rank 2: the header says so, or the tensors alone."""
    weights = load_file(written)
    for name in [name for name in weights if "to_q" in name]:
        weights[name] = (weights[name][:2] if "lora_A" in name else weights[name][:, :2]).contiguous()
    path = headed(written, tmp_path, weights, **{"unet.rank_pattern": {"to_q": 2}})
    test_every_layout_adds_what_stock_diffusers_adds(pipeline, path, tmp_path, layout, 1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("modules_to_save", ["conv_in"]),
        ("layer_replication", [[0, 4]]),
        ("peft_type", "LOKR"),
        ("use_qalora", True),
        ("trainable_token_indices", [1]),
        ("secret", 1),
        ("r", 8),
        ("rank_pattern", {"to_q": 8}),
        ("rank_pattern", [4]),
        ("lora_alpha", "six"),
        ("target_modules", ["to_q"]),
        ("exclude_modules", ["to_q"]),
    ],
)
def test_field_of_a_header_is_refused(written, tmp_path, key, value):
    path = headed(written, tmp_path, **{f"unet.{key}": value})
    with pytest.raises(ValueError, match=str(path)) as error:
        published_lora.load(path, scale=1.0)
    words = {"r": "has rank 4, but", "exclude_modules": "target_modules", "lora_alpha": "'six' is no number"}
    allowed = (key, words.get(key, key), "has rank 4, but .* says 8")
    assert any(re.search(each, str(error.value)) for each in allowed) and "\n" not in str(error.value)


def test_headers_that_are_no_configuration_are_refused(written, tmp_path):
    weights = load_file(written)
    for header, tensors, words in (
        ("[1]", weights, "lora_adapter_metadata is no JSON object"),
        ('{"text_encoder.r": 4}', weights, "has no key that begins with unet"),
        ('{"unet.r": 4, "r": 4}', weights, "r is unknown: keys of the network begin with unet."),
        ('{"unet.r": 4}', load_file(kohya(written, tmp_path)), "has both lora_adapter_metadata and tensors"),
    ):
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": header})
        with pytest.raises(ValueError, match=words):
            published_lora.load(tmp_path / "x.safetensors", scale=1.0)
