"""Each field of a folder's configurations gives the numbers of stock diffusers and transformers, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.importers import autoencoder_files, clip_files, diffusers, stable_diffusion, teachers, text_files
from dmd.metrics.features import eight_bit
from dmd.models import loading, outside_config
from dmd.models.autoencoder import Codec
from dmd.models.networks import build
from dmd.models.text_encoder import Text
from dmd.provenance import tensor_files
from dmd.sampling import schedulers
from dmd.stages import autoencoder, teacher, text_encoder
from tests.clip_files import make_clip
from tests.stable_diffusion_files import END, make_stable_diffusion, make_tiny_autoencoder

PROMPTS = ["a photo of <cat-toy>", "red House in the snow", ""]
SECRET = ("secret", 1)  # a key that no library has


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def clip_source(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def folder(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "sd"))


@pytest.fixture
def clip_folder(clip_source, tmp_path) -> Path:
    return Path(shutil.copytree(clip_source, tmp_path / "clip"))


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def remade(folder: Path, name: str, **changed: Any) -> Any:
    """The network of diffusers with these arguments and random weights, which it writes into the folder."""
    torchvision_operators.ensure()
    import diffusers

    config = json.loads((folder / "config.json").read_text()) | changed
    kept = outside_config.arguments(folder, config, name)
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**kept).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    network.save_pretrained(folder)
    return network


def refused(read: Callable[[], Any], place: Path, key: str) -> None:
    """The message is one line, and names the file and the key."""
    with pytest.raises(ValueError, match=f"{key} ") as error:
        read()
    assert str(place) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("center_input_sample", True),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("mid_block_type", "UNetMidBlock2D"),
        ("only_cross_attention", True),
        ("layers_per_block", 2),
        ("downsample_padding", 0),
        ("mid_block_scale_factor", 2.0),
        ("dropout", 0.5),
        ("act_fn", "gelu"),
        ("norm_num_groups", 4),
        ("norm_eps", 0.1),
        ("transformer_layers_per_block", 2),
        ("attention_head_dim", 8),
        ("use_linear_projection", True),
        ("upcast_attention", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("resnet_skip_time_act", True),
        ("resnet_out_scale_factor", 2.0),
        ("time_embedding_dim", 32),
        ("time_embedding_act_fn", "silu"),
        ("timestep_post_act", "silu"),
        ("conv_in_kernel", 1),
        ("conv_out_kernel", 1),
        ("mid_block_only_cross_attention", True),
        ("cross_attention_norm", "layer_norm"),
    ],
)
@torch.no_grad()
def test_field_of_a_text_network_is_used(key, value, folder):
    stock = remade(folder / "unet", "UNet2DConditionModel", **{key: value})
    tensors, facts = stable_diffusion.load(folder)
    network = build(facts["network"]).eval()
    network.load_state_dict({name[4:]: each for name, each in tensors.items() if name[:4] == "ema."})
    given = torch.randn(2, 4, 16, 16), torch.tensor([10.0, 700.0]), torch.randn(2, 7, 32)
    torch.testing.assert_close(network(*given), stock(given[0], given[1], encoder_hidden_states=given[2]).sample)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet", "time_cond_proj_dim", 8),
        ("unet", "addition_embed_type", "text"),
        ("unet", "addition_time_embed_dim", 8),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_class_embeds", 4),
        ("unet", "encoder_hid_dim", 16),
        ("unet", "encoder_hid_dim_type", "text_proj"),
        ("unet", "projection_class_embeddings_input_dim", 4),
        ("unet", "class_embeddings_concat", True),
        ("unet", "attention_type", "gated"),
        ("unet", "dual_cross_attention", True),
        ("unet", "time_embedding_type", "fourier"),
        ("unet", "_use_default_values", ["freq_shift"]),
        ("unet", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("unet", *SECRET),
        ("vae", "shift_factor", 0.1),
        ("vae", "latents_mean", [0.1] * 4),
        ("vae", "latents_std", [2.0] * 4),
        ("vae", *SECRET),
        ("text_encoder", "use_attention_mask", True),
        ("text_encoder", "pruned_heads", {"0": [1]}),
        ("text_encoder", "is_decoder", True),
        ("text_encoder", *SECRET),
        ("scheduler", "rescale_betas_zero_snr", True),
        ("scheduler", "timestep_type", "continuous"),
        ("scheduler", "use_flow_sigmas", True),
        ("scheduler", "predict_epsilon", False),
        ("scheduler", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("scheduler", "shift_terminal", 0.1),
        ("scheduler", *SECRET),
        ("tokenizer", "padding_side", "left"),
        ("tokenizer", "truncation_side", "left"),
        ("tokenizer", "split_special_tokens", True),
        ("tokenizer", "model_max_length", 64),
        ("tokenizer", "tokenizer_class", "BertTokenizer"),
        ("tokenizer", *SECRET),
        ("", "_class_name", "StableDiffusionSafePipeline"),
        ("", "scheduler", ["diffusers", "DDIMScheduler"]),
        ("", "controlnet", ["diffusers", "ControlNetModel"]),
        ("", "force_zeros_for_empty_prompt", True),
    ],
)
def test_field_that_is_not_used_is_refused_by_name(file, key, value, folder):
    names = {"": "model_index.json", "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    path = folder / file / names.get(file, "config.json")
    edit(path, **{key: value})
    refused(lambda: (stable_diffusion.load(folder), autoencoder_files.load(folder / "vae")), path, key)


def test_size_that_the_stock_pipeline_would_replace_is_refused(folder):
    edit(folder / "unet/config.json", _diffusers_version="0.6.0")
    refused(lambda: stable_diffusion.load(folder), folder / "unet/config.json", "sample_size")


HARMLESS = {
    "unet/config.json": {"decay": 0.999, "optimization_step": 10, "use_ema_warmup": False, "new_key": None, "_note": 1},
    "vae/config.json": {"force_upcast": True, "sample_size": 7, "latents_mean": None, "shift_factor": 0.0},
    "text_encoder/config.json": {"torch_dtype": "float16", "attention_dropout": 0.5, "eos_token_id": 2, "top_k": 50},
    "scheduler/scheduler_config.json": {"algorithm_type": "sde-dpmsolver++", "flow_shift": 1.0, "tensor_format": "pt"},
    "tokenizer/tokenizer_config.json": {"name_or_path": "x", "padding_side": "right", "errors": "ignore"},
    "model_index.json": {
        "requires_safety_checker": True,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "controlnet": [None, None],
    },
}


def everything(folder: Path) -> dict[str, Any]:
    """Tensors of all importers, and the images and text states that the networks compute."""
    tensors, facts = stable_diffusion.load(folder)
    network = build(facts["network"]).eval()
    network.load_state_dict({name[4:]: each for name, each in tensors.items() if name[:4] == "ema."})
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 16, 16, generator=random)
    state, section = autoencoder_files.load(folder / "vae")
    codec = Codec(**section["autoencoder"]).eval()
    codec.load_state_dict(state)
    found = {"unet": network(latent, torch.tensor([9.0]), tensors["text.empty"][None]), "image": codec.decode(latent)}
    return {**tensors, **found, "states": text_of(folder).encode(PROMPTS).states, "levels": facts["preconditioning"]}


def text_of(folder: Path) -> Text:
    state, facts = text_files.load(folder)
    text = Text(**facts["text_encoder"]).eval()
    text.load_state_dict(state)
    return text


@torch.no_grad()
def test_harmless_fields_change_nothing(folder):
    before = everything(folder)
    for name, changed in HARMLESS.items():
        edit(folder / name, **changed)
    after = everything(folder)
    assert before.pop("levels") == after.pop("levels")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scaling_factor", 0.5),
        ("use_quant_conv", False),
        ("use_post_quant_conv", False),
        ("mid_block_add_attention", False),
        ("act_fn", "gelu"),
        ("layers_per_block", 2),
        ("norm_num_groups", 2),
    ],
)
@torch.no_grad()
def test_field_of_an_autoencoder_is_used(key, value, folder):
    stock = remade(folder / "vae", "AutoencoderKL", **{key: value})
    state, facts = autoencoder_files.load(folder / "vae")
    codec = Codec(**facts["autoencoder"]).eval()
    codec.load_state_dict(state)
    latent, image = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(codec.decode(latent), stock.decode(latent / stock.config.scaling_factor).sample)
    torch.testing.assert_close(
        codec.encode(image), stock.encode(image).latent_dist.mode() * stock.config.scaling_factor
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("scaling_factor", 0.5), ("act_fn", "silu"), ("upsample_fn", "bilinear"), ("latent_magnitude", 5)],
)
@torch.no_grad()
def test_field_of_a_tiny_autoencoder_is_used(key, value, tmp_path):
    make_tiny_autoencoder(tmp_path)
    stock = remade(tmp_path, "AutoencoderTiny", **{key: value})
    state, facts = autoencoder_files.load(tmp_path, "tiny")
    codec = Codec(**facts["autoencoder"]).eval()
    codec.load_state_dict(state)
    latent = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(codec.decode(latent), stock.decode(latent / stock.config.scaling_factor).sample)


@pytest.mark.parametrize(
    ("key", "value"), [("upsampling_scaling_factor", 4), ("shift_factor", 0.5), ("scaling_factor", None), SECRET]
)
def test_field_of_a_tiny_autoencoder_is_refused(key, value, tmp_path):
    edit(make_tiny_autoencoder(tmp_path) / "config.json", **{key: value})
    refused(lambda: autoencoder_files.load(tmp_path, "tiny"), tmp_path, key)


@pytest.mark.parametrize(
    "changed",
    [
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"thresholding": True},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"steps_offset": 0},
        {"set_alpha_to_one": True},
        {"final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"sigma_min": 0.1, "sigma_max": 5.0, "use_karras_sigmas": True},
        {"trained_betas": [0.001 + 0.00002 * step for step in range(1000)]},
        {"beta_schedule": "linear", "beta_end": 0.01},
        {"prediction_type": "v_prediction"},
        {"variance_type": "fixed_large"},
        {"solver_order": 1, "solver_type": "heun", "lower_order_final": False},
        {"euler_at_final": True, "use_lu_lambdas": True},
        {"skip_prk_steps": False},
        {"lambda_min_clipped": -5.1},
        {"predict_x0": False, "disable_corrector": [0], "final_sigmas_type": "sigma_min"},
        {"interpolation_type": "log_linear"},
        {"original_inference_steps": 20, "timestep_scaling": 5.0},
        {"num_train_timesteps": 500},
    ],
    ids=lambda changed: next(iter(changed)),
)
@torch.no_grad()
def test_field_of_a_scheduler_gives_latents_of_the_stock_pipeline(changed, folder):
    torchvision_operators.ensure()
    import diffusers as library

    edit(folder / "scheduler/scheduler_config.json", **changed)
    tensors, facts = stable_diffusion.load(folder)
    network = build(facts["network"]).eval()
    network.load_state_dict({name[4:]: each for name, each in tensors.items() if name[:4] == "ema."})
    denoiser = loading.Denoiser(network, sigma_data=1.0, preconditioning=facts["preconditioning"]).eval()
    denoiser.scheduler = facts["scheduler"]
    pipeline = library.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    config, states = pipeline.scheduler.config, text_of(folder).encode(["a photo of a cat"]).states
    torch.testing.assert_close(
        pipeline.scheduler.alphas_cumprod.double(), denoiser.table[0].square(), rtol=1e-5, atol=0
    )
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("pndm", "ddim", "dpmsolver++", "unipc", "heun-discrete", "euler-discrete"):
        kind, arguments = schedulers.CLASSES[name]
        pipeline.scheduler = getattr(library, kind).from_config(config, **arguments)
        expected = pipeline(
            "a photo of a cat", latents=noise, num_inference_steps=4, guidance_scale=1.0, output_type="latent"
        ).images
        found, _ = schedulers.draw(denoiser, noise, states, {"name": name, "steps": 4})
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("name", stable_diffusion.SCHEDULERS)
def test_scheduler_as_diffusers_saves_it_is_taken(name, folder):
    """All its defaults, among them -Infinity in the file of DPM-Solver, which JSON does not have."""
    torchvision_operators.ensure()
    import diffusers as library

    kind = getattr(library, name)
    kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    facts = stable_diffusion.load(folder)[1]
    assert json.dumps(facts, allow_nan=False)
    saved = kind.from_pretrained(folder / "scheduler", local_files_only=True)
    assert facts["preconditioning"]["alphas_cumprod"] == saved.alphas_cumprod.double().tolist()
    edit(folder / "scheduler/scheduler_config.json", sigma_max=float("nan"))
    refused(lambda: stable_diffusion.load(folder), folder / "scheduler/scheduler_config.json", "sigma_max nan")


def with_added_token(folder: Path, how: str) -> Any:
    """Adds <cat-toy> to the tokenizer and a row to the text encoder, as textual inversion does; returns both."""
    torchvision_operators.ensure()
    from transformers import CLIPTextModel, CLIPTokenizer

    place = folder / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
    number = len(tokenizer)
    token = {"content": "<cat-toy>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    if how == "added_tokens.json":
        (place / how).write_text(json.dumps({"<cat-toy>": number}))
    elif how == "added_tokens_decoder":
        special = tokenizer.convert_tokens_to_ids(END)
        ends = {str(special): {**token, "content": END, "special": True}}
        ends |= {str(special - 1): {**token, "content": "<|startoftext|>", "special": True}}
        edit(place / "tokenizer_config.json", added_tokens_decoder={**ends, str(number): {**token, "special": False}})
    elif how == "special_tokens_map.json":
        edit(place / how, additional_special_tokens=["<cat-toy>"])
    else:
        tokenizer.add_tokens("<cat-toy>")
        tokenizer.save_pretrained(place)
        if how == "tokenizer.json alone":
            for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
                (place / name).unlink(missing_ok=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    encoder.resize_token_embeddings(number + 1)
    encoder.save_pretrained(folder / "text_encoder")
    return CLIPTokenizer.from_pretrained(place, local_files_only=True), encoder.eval()


@pytest.mark.parametrize(
    "how",
    ["added_tokens.json", "added_tokens_decoder", "special_tokens_map.json", "tokenizer.json", "tokenizer.json alone"],
)
@torch.no_grad()
def test_added_tokens_are_those_of_transformers(how, folder):
    tokenizer, encoder = with_added_token(folder, how)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert len(tokenizer) - 1 in ids[0]
    torch.testing.assert_close(text_of(folder).encode(PROMPTS).states, encoder(ids).last_hidden_state)
    _, facts = text_files.load(folder)
    assert set(facts["text_encoder"]["tokenizer"]) <= {
        *("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    }


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "gelu"), ("layer_norm_eps", 0.1), ("num_attention_heads", 4), ("eos_token_id", 7)]
)
@torch.no_grad()
def test_field_of_a_text_encoder_is_used(key, value, folder):
    torchvision_operators.ensure()
    from transformers import CLIPTextModel, CLIPTokenizer

    edit(folder / "text_encoder/config.json", **{key: value})
    stock = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    torch.testing.assert_close(text_of(folder).encode(PROMPTS).states, stock(ids).last_hidden_state)


def test_added_tokens_of_clip_are_those_of_transformers(clip_folder):
    torchvision_operators.ensure()
    from transformers import CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True)
    network = CLIPModel.from_pretrained(clip_folder, local_files_only=True)
    (clip_folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": len(tokenizer)}))
    torch.manual_seed(0)
    network.text_model.resize_token_embeddings(len(tokenizer) + 1)
    network.config.text_config.vocab_size = len(tokenizer) + 1
    network.save_pretrained(clip_folder)
    clip, _, _ = clip_files.load(clip_folder, sha256=None)
    assert len(tokenizer) in clip.tokenise(PROMPTS)[0]
    torch.testing.assert_close(clip(pictures(), PROMPTS), stock_cosines(clip_folder, pictures()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def stock_cosines(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    torchvision_operators.ensure()
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    network = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    texts = CLIPTokenizer.from_pretrained(folder, local_files_only=True)(
        PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    output = network(**texts, pixel_values=processor(list(pixels), return_tensors="pt").pixel_values)
    return (output.image_embeds * output.text_embeds).sum(1)


def pictures() -> torch.Tensor:
    """Pictures of the size that the network takes, which no filter changes."""
    return eight_bit(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("preprocessor_config.json", {}),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 0.5]}),
        ("preprocessor_config.json", {"do_center_crop": False, "do_convert_rgb": False, "size": 16, "crop_size": 16}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.3] * 3, "size": {"height": 16, "width": 16}}}),
        ("config.json", {"vision_config_dict": {"hidden_act": "gelu", "image_size": 16, "patch_size": 4}}),
        ("config.json", {"logit_scale_init_value": 1.0}),
    ],
    ids=["none", "image_mean", "do_center_crop", "processor_config.json", "vision_config_dict", "logit_scale"],
)
def test_field_of_clip_gives_the_cosines_of_transformers(file, changed, clip_folder):
    path = clip_folder / file
    if "vision_config_dict" in changed:
        whole = json.loads(path.read_text())["vision_config"]
        changed = {"vision_config_dict": {**whole, **changed["vision_config_dict"]}}
    if "image_processor" in changed:
        own = json.loads((clip_folder / "preprocessor_config.json").read_text())
        changed = {
            "image_processor": {**own, **changed["image_processor"], "image_processor_type": "CLIPImageProcessor"}
        }
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changed))
    clip, _, _ = clip_files.load(clip_folder, sha256=None)
    torch.testing.assert_close(clip(pictures(), PROMPTS), stock_cosines(clip_folder, pictures()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("", "do_resize", False),
        ("", "do_rescale", False),
        ("", "do_normalize", False),
        ("", "do_pad", True),
        ("", "rescale_factor", 1 / 127.5),
        ("", "resample", 2),
        ("", "crop_size", {"height": 8, "width": 8}),
        ("", "size", {"longest_edge": 16}),
        ("", "image_mean", [0.5, 0.5]),
        ("", "image_std", [0, 1, 1]),
        ("", "image_std", [float("nan"), 1, 1]),
        ("", "image_processor_type", "SiglipImageProcessor"),
        ("", *SECRET),
        ("vision_config", "num_channels", 1),
        ("vision_config", *SECRET),
        ("text_config", "use_attention_mask", True),
        ("text_config_dict", *SECRET),
        ("config", *SECRET),
    ],
)
def test_field_of_clip_is_refused(part, key, value, clip_folder):
    path = clip_folder / ("config.json" if part else "preprocessor_config.json")
    own = json.loads(path.read_text()).get(part) or {}
    edit(path, **({part: own | {key: value}} if "_config" in part else {key: value}))
    with pytest.raises(ValueError, match=str(path)) as error:
        clip_files.load(clip_folder, sha256=None)
    assert key in str(error.value) or str(value) in str(error.value) or "by filter" in str(error.value)


PIXELS = {"sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8}
PIXELS |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("center_input_sample", True),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 2.0),
        ("downsample_type", "resnet"),
        ("upsample_type", "resnet"),
        ("dropout", 0.5),
        ("act_fn", "gelu"),
        ("attention_head_dim", 16),
        ("attn_norm_num_groups", 4),
        ("norm_eps", 0.1),
        ("resnet_time_scale_shift", "scale_shift"),
        ("add_attention", False),
        ("time_embedding_dim", 32),
        ("decay", 0.999),
        ("new_key", None),
    ],
)
@torch.no_grad()
def test_field_of_a_network_of_pixels_is_used(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PIXELS))
    known = key in outside_config.library_defaults("UNet2DModel")
    stock = remade(tmp_path, "UNet2DModel", **({key: value} if known else {}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    edit(tmp_path / "config.json", **{key: value})
    tensors, facts = diffusers.load(tmp_path)
    network = build(facts["network"]).eval()
    network.load_state_dict({name[4:]: each for name, each in tensors.items()})
    image, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 800.0])
    torch.testing.assert_close(network(image, time, torch.full((2,), -1)), stock(image, time).sample)
    for odd, other in (("time_embedding_type", "fourier"), ("class_embed_type", "identity"), SECRET):
        edit(tmp_path / "config.json", **{odd: other})
        refused(lambda: diffusers.load(tmp_path), tmp_path / "config.json", odd)
        edit(tmp_path / "config.json", **{odd: None})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 0.5},
        {"clip_sample": False, "thresholding": True},
        {"timestep_spacing": "trailing"},
        {"steps_offset": 1},
        {"set_alpha_to_one": False},
        {"prediction_type": "sample"},
    ],
    ids=lambda changed: "-".join(changed) or "defaults",
)
@torch.no_grad()
def test_field_of_a_scheduler_of_pixels_gives_images_of_diffusers(changed, tmp_path):
    torchvision_operators.ensure()
    from diffusers import DDIMScheduler

    (tmp_path / "config.json").write_text(json.dumps(PIXELS))
    stock = remade(tmp_path, "UNet2DModel")
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", **changed}))
    tensors, facts = diffusers.load(tmp_path)
    network = build(facts["network"]).eval()
    network.load_state_dict({name[4:]: each for name, each in tensors.items()})
    denoiser = loading.Denoiser(network, sigma_data=1.0, preconditioning=facts["preconditioning"]).eval()
    denoiser.scheduler = facts["scheduler"]
    scheduler = DDIMScheduler.from_pretrained(tmp_path, local_files_only=True)
    scheduler.set_timesteps(4)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = noise
    for time in scheduler.timesteps:
        image = scheduler.step(stock(image, time).sample, time, image).prev_sample
    found, _ = schedulers.draw(denoiser, noise, torch.full((2,), -1), {"name": "ddim", "steps": 4})
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", ["requires_secret", "controlnet"])
def test_key_of_a_pipeline_of_pixels_is_refused(key, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PIXELS))
    remade(tmp_path, "UNet2DModel")
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    value = ["diffusers", "ControlNetModel"] if key == "controlnet" else 1
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], key: value}))
    refused(lambda: diffusers.load(tmp_path), tmp_path / "model_index.json", key)


@pytest.mark.parametrize("kind", sorted(outside_config.KINDS))
def test_every_key_of_the_library_is_used_or_harmless_or_has_to_be_the_default(kind):
    fields = outside_config.KINDS[kind]
    known = {key: value for name in fields.libraries for key, value in outside_config.library_defaults(name).items()}
    assert not fields.used & fields.harmless
    outside_config.check("here", {key: value[0] for key, value in known.items() if value}, kind)
    for key in {*known, "secret"} - fields.used - fields.harmless - {"transformers_version"}:
        if key[:1] != "_":
            with pytest.raises(ValueError, match=f"here: {key} 'another value' is not supported"):
                outside_config.check("here", {key: "another value"}, kind)
    if fields.libraries and not kind.startswith("CLIP"):
        assert fields.used <= known.keys(), "a key that the library no longer has"


def test_a_long_value_is_cut():
    with pytest.raises(ValueError) as error:
        outside_config.check("here", {"k" * 1000: "v" * 1000}, "AutoencoderKL")
    assert len(str(error.value)) < 400


def renamed(folder: Path, variant: str, parts: bool) -> None:
    """Weights of a folder under the names that diffusers and transformers give to a variant."""
    (path,) = [path for path in folder.glob("*.safetensors") if path.name.count(".") == 1]
    if not parts:
        path.rename(path.with_suffix(f".{variant}.safetensors"))
        return
    state = safetensors.torch.load_file(path)
    files = {f"{path.stem}-0000{number + 1}-of-00002.{variant}.safetensors": number for number in (0, 1)}
    index = {name: file for file, number in files.items() for name in sorted(state)[number::2]}
    for file in files:
        safetensors.torch.save_file(
            {name: state[name] for name, place in index.items() if place == file}, folder / file
        )
    (folder / f"{path.name}.index.{variant}.json").write_text(json.dumps({"weight_map": index}))
    path.unlink()


def test_stages_record_the_variant(folder, tmp_path):
    for place in ("unet", "vae", "text_encoder"):
        renamed(folder / place, "fp16", parts=False)
    files = [tmp_path / name for name in ("teacher", "text", "vae")]
    teacher.run(output=files[0], table=tmp_path / "log", kind="stable-diffusion", source=folder, variant="fp16")
    text_encoder.run(output=files[1], source=folder, variant="fp16")
    autoencoder.run(output=files[2], source=folder, kind="stable-diffusion", variant="fp16")
    facts = [tensor_files.load_metadata(file) for file in files]
    assert [each["spec"]["variant"] for each in facts] == ["fp16"] * 3
    assert len({each["source_sha256"] for each in facts}) == 1


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("parts", [False, True])
def test_folder_with_a_variant_alone_is_taken(variant, parts, folder, clip_folder, tmp_path):
    expected = stable_diffusion.load(folder)[0], text_files.load(folder)[0], autoencoder_files.load(folder / "vae")[0]
    clip_before = clip_files.load(clip_folder, sha256=None)[0].state_dict()
    tiny = make_tiny_autoencoder(tmp_path / "tiny")
    tiny_before = autoencoder_files.load(tiny, "tiny")[0]
    for place in (folder / "unet", folder / "vae", folder / "text_encoder", clip_folder, tiny):
        renamed(place, "fp16", parts)
    found = stable_diffusion.load(folder, variant)[0], text_files.load(folder, variant)[0]
    found += (autoencoder_files.load(folder / "vae", "full", variant)[0],)
    expected += clip_before, tiny_before
    found += (clip_files.load(clip_folder, sha256=None, variant=variant)[0].state_dict(),)
    found += (autoencoder_files.load(tiny, "tiny", variant)[0],)
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_plain_weights_count_unless_the_variant_is_named(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file(
        {name: 2 * value for name, value in state.items()}, path.with_suffix(".fp16.safetensors")
    )
    plain, doubled = stable_diffusion.load(folder)[0], stable_diffusion.load(folder, "fp16")[0]
    assert torch.equal(2 * plain["ema.unet.conv_in.bias"], doubled["ema.unet.conv_in.bias"])
    assert torch.equal(plain["text.empty"], doubled["text.empty"])  # from a sub-folder without the variant
    with pytest.raises(ValueError, match="has no weights of variant 'bf16': drop the key variant"):
        stable_diffusion.load(folder, "bf16")
    path.rename(path.with_suffix(".bf16.safetensors"))
    with pytest.raises(ValueError, match="unet has the variants bf16, fp16: choose one by the key variant"):
        stable_diffusion.load(folder)


@pytest.mark.parametrize("name", ["model-00001-of-00002.fp16", "model.fp16-00001-of-00002", "model-00001-of-00002"])
def test_parts_without_their_index_are_named(name, folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_name(f"diffusion_pytorch_{name}.safetensors"))
    with pytest.raises(ValueError, match="safetensors.index.json is missing: the index of the parts of the UNet2DCond"):
        stable_diffusion.load(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "freq_shift", "a"),
        ("unet/config.json", "conv_in_kernel", 4),
        ("scheduler/scheduler_config.json", "prediction_type", ["epsilon"]),
        ("text_encoder/config.json", "eos_token_id", [1, 2]),
    ],
)
def test_whatever_a_library_raises_is_one_line_before_anything_is_drawn(file, key, value, folder):
    edit(folder / file, **{key: value})
    with pytest.raises(ValueError, match=f"^{folder}") as error:
        teachers.load("stable-diffusion", folder, sha256=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("freq_shift", "a"), ("layers_per_block", -1), ("downsample_padding", 3)])
def test_network_of_pixels_that_cannot_draw_is_refused(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PIXELS))
    remade(tmp_path, "UNet2DModel")
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    edit(tmp_path / "config.json", **{key: value})
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json cannot be read: ") as error:
        diffusers.load(tmp_path)
    assert "\n" not in str(error.value)
