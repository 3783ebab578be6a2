"""Teachers from Stable Diffusion folders: the same network, text states and images as stock diffusers; refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import dmd
from dmd import torchvision_operators
from dmd.models import loading
from dmd.models.guidance import with_guidance
from dmd.provenance import record, tensor_files
from dmd.sampling.sampler import Sampler
from dmd.sampling.solvers import solve
from dmd.stages import autoencoder, teacher, text_encoder
from tests.stable_diffusion_files import make_stable_diffusion, make_tiny_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPTS = ["a photo of a cat", "", "Red HOUSE,  in the snow! é", "dog " * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def pipeline(folder) -> Any:
    torchvision_operators.ensure()
    from diffusers import StableDiffusionPipeline

    found = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory) -> Path:
    """All that is made of the folder."""
    place = tmp_path_factory.mktemp("made")
    teacher.run(
        output=place / "denoiser.safetensors", table=place / "log.parquet", kind="stable-diffusion", source=folder
    )
    text_encoder.run(output=place / "text_encoder.safetensors", source=folder)
    autoencoder.run(output=place / "autoencoder.safetensors", source=folder, kind="stable-diffusion")
    return place


def test_file_says_what_later_stages_need(folder, made):
    metadata = tensor_files.load_metadata(made / "denoiser.safetensors")
    expected = {"kind": "stable-diffusion", "shape": [4, 16, 16], "image_shape": [3, 64, 64], "num_classes": 0}
    expected |= {"text": {"length": 77, "width": 32}, "sigma_data": 1.0}
    assert metadata.items() >= expected.items()
    assert metadata["sigma_max"] == pytest.approx(14.6146, rel=1e-4)
    assert metadata["scheduler"]["_class_name"] == "PNDMScheduler" and metadata["scheduler"]["steps_offset"] == 1
    digests = [tensor_files.load_metadata(path)["source_sha256"] for path in sorted(made.glob("*.safetensors"))]
    assert len(digests) == 3 and len(set(digests)) == 1
    read = sorted(record.read(made / "text_encoder.safetensors")["inputs"])
    assert [Path(name).name for name in read][:2] == ["config.json", "model.safetensors"]
    before = {path: path.read_bytes() for path in made.glob("*.safetensors")}
    again = made / "again"
    teacher.run(
        output=again / "denoiser.safetensors",
        table=again / "log.parquet",
        kind="stable-diffusion",
        source=folder,
        sha256=digests[0],
    )
    text_encoder.run(output=again / "text_encoder.safetensors", source=folder)
    assert (again / "text_encoder.safetensors").read_bytes() == before[made / "text_encoder.safetensors"]
    with pytest.raises(ValueError, match="pins 00000000"):
        text_encoder.run(output=again / "other.safetensors", source=folder, sha256="00000000")


@torch.no_grad()
def test_text_states_are_those_of_the_pipeline(made, pipeline):
    text = loading.load_text(made / "text_encoder.safetensors")
    found = text.encode(PROMPTS)
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert torch.equal(found.states, pipeline.text_encoder(ids.input_ids)[0])
    torch.testing.assert_close(found.states, pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0])
    lengths = [len(row) for row in pipeline.tokenizer(PROMPTS).input_ids]
    assert found.truncated.tolist() == [length > 77 for length in lengths] == [False, False, False, True]
    assert (text.length, text.width) == (77, 32) and not (found.states[0] - found.states[2]).abs().max() < 0.1
    empty = loading.load_empty(made / "denoiser.safetensors")
    torch.testing.assert_close(empty, found.states[1])


@torch.no_grad()
def test_guided_denoiser_at_a_level_is_the_x0_of_the_pipelines_own_numbers(made, pipeline):
    denoiser, metadata = loading.load_denoiser(made / "denoiser.safetensors")
    assert denoiser.scheduler == metadata["scheduler"] and denoiser.table is not None
    assert not any(value.is_meta for value in [*denoiser.parameters(), *denoiser.buffers()])
    states = loading.load_text(made / "text_encoder.safetensors").encode(PROMPTS[:2]).states
    empty = loading.load_empty(made / "denoiser.safetensors")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    square = float(pipeline.scheduler.alphas_cumprod[999].double())
    alpha, sigma = square**0.5, ((1 - square) / square) ** 0.5
    given, without = (
        pipeline.unet(noise, 999, encoder_hidden_states=each).sample for each in (states, empty[None].expand(2, -1, -1))
    )
    found = with_guidance(denoiser, empty, 3.0)(noise / alpha, torch.full((2,), sigma), states)
    predicted = (without + 3 * (given - without)).double()
    expected = (noise.double() - (1 - square) ** 0.5 * predicted) / alpha
    assert float((given - without).abs().max()) > 0.01
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@torch.no_grad()
def test_folder_of_instaflow_is_a_rectified_flow_for_every_solver(folder, made, pipeline, tmp_path):
    """The UNet of RectifiedFlowPipeline predicts x0 - noise at timestep 1000 t of (1 - t) x0 + t noise."""
    index = shutil.copytree(folder, tmp_path / "flow") / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "RectifiedFlowPipeline"}))
    path, flow = tmp_path / "denoiser.safetensors", {"name": "rectified-flow", "steps": 3}
    given = {"output": path, "table": tmp_path / "log.parquet", "kind": "stable-diffusion", "source": index.parent}
    with pytest.raises(ValueError, match=r"/flow: a.pairs.solver: solver 'pndm' needs a teacher that comes with a sch"):
        teacher.run(**given, solvers={"a.pairs.solver": {"name": "pndm", "steps": 50}})
    with pytest.raises(ValueError, match=r"a.sample.solver: solver 'rectified-flow' needs a teacher whose network"):
        teacher.run(**given | {"source": folder}, solvers={"a.sample.solver": flow})
    assert not path.exists()
    teacher.run(**given, solvers={"a.sample.solver": flow})
    metadata = tensor_files.load_metadata(path)
    assert metadata["preconditioning"] == {"kind": "flow", "prediction": "x0 - noise"} and "scheduler" not in metadata
    states = loading.load_text(made / "text_encoder.safetensors").encode(PROMPTS[:2]).states
    image = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    denoiser, noise = loading.load_denoiser(path)[0], image

    def velocity(image, time):
        return pipeline.unet(image, 1000 * time, encoder_hidden_states=states).sample

    for step in range(3):
        image = image + velocity(image, 1 - step / 3) / 3
    found, calls = solve(denoiser, noise, states, flow)
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-4)
    assert calls == 3 and dmd.load(path, solver="rectified-flow", steps=3).solver == flow
    x0 = denoiser(noise / 0.25, torch.full((2,), 3.0), states)  # sigma 3 is t = .75
    torch.testing.assert_close(x0, noise + 0.75 * velocity(noise, 0.75), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="solver 'pndm'.* is a teacher; use one of"):
        dmd.load(path, solver="pndm")
    with pytest.raises(ValueError, match="solver 'rectified-flow' needs a teacher whose network predicts a velocity"):
        Sampler(made / "denoiser.safetensors", solver=flow)


def test_codec_decodes_and_encodes_as_the_pipeline_does(made, pipeline, folder, tmp_path):
    codec = loading.load_codec(made / "autoencoder.safetensors")
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = codec.decode(latent)
    factor = pipeline.vae.config.scaling_factor
    assert factor == 0.18215 and image.shape == (2, 3, 64, 64) and (codec.channels, codec.scale) == (4, 4)
    torch.testing.assert_close(image, pipeline.vae.decode(latent / factor).sample)
    (gradient,) = torch.autograd.grad(image.square().mean(), latent)
    codec.train().checkpointing = True
    (again,) = torch.autograd.grad(codec.decode(latent).square().mean(), latent)
    assert float(gradient.abs().max()) > 0
    torch.testing.assert_close(again, gradient)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codec.eval().encode(pixels), pipeline.vae.encode(pixels).latent_dist.mean * factor)
    for bad in (latent[:, :3], latent[0]):
        with pytest.raises(ValueError, match=r"latent: shape .* is not \(B, 4, h, w\)"):
            codec.decode(bad)
    with pytest.raises(ValueError, match="in multiples of 4"):
        codec.encode(pixels[..., :62])


def test_tiny_codec_is_diffusers_own(tmp_path):
    torchvision_operators.ensure()
    from diffusers import AutoencoderTiny

    source = make_tiny_autoencoder(tmp_path / "tiny")
    autoencoder.run(output=tmp_path / "t.safetensors", source=source, kind="tiny")
    codec, stock = loading.load_codec(tmp_path / "t.safetensors"), AutoencoderTiny.from_pretrained(source)
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = codec.decode(latent)
    torch.testing.assert_close(image, stock.decode(latent).sample)
    image.square().mean().backward()
    assert (codec.scale, codec.channels) == (4, 4) and float(latent.grad.abs().max()) > 0
    torch.testing.assert_close(codec.encode(image), stock.encode(image).latents)
    with pytest.raises(ValueError, match="is of kind 'autoencoder', not text-encoder"):
        loading.load_text(tmp_path / "t.safetensors")
    (source / "diffusion_pytorch_model.safetensors").rename(source / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="the weights of the AutoencoderTiny .other formats are not read"):
        autoencoder.run(output=tmp_path / "u.safetensors", source=source, kind="tiny")


def test_folders_of_other_releases_give_the_same_files(folder, made, tmp_path):
    """Older names of weights, a tokenizer in the newer single file."""
    shutil.copytree(folder, tmp_path / "old")
    place = tmp_path / "old/text_encoder/model.safetensors"
    state = {f"text_model.{name}": value for name, value in safetensors.torch.load_file(place).items()}
    safetensors.torch.save_file({**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, place)
    place = tmp_path / "old/vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = safetensors.torch.load_file(place)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    safetensors.torch.save_file(state, place)
    torchvision_operators.ensure()
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(tmp_path / "new")
    shutil.rmtree(tmp_path / "old/tokenizer")
    (tmp_path / "new").rename(tmp_path / "old/tokenizer")
    assert not (tmp_path / "old/tokenizer/vocab.json").exists()
    text_encoder.run(output=tmp_path / "t.safetensors", source=tmp_path / "old")
    autoencoder.run(output=tmp_path / "a.safetensors", source=tmp_path / "old", kind="stable-diffusion")
    for name in ("autoencoder", "text_encoder"):
        expected, found = (
            tensor_files.load(made / f"{name}.safetensors")[0],
            tensor_files.load(tmp_path / f"{name[0]}.safetensors")[0],
        )
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    encoded = [
        loading.load_text(path).encode(PROMPTS)
        for path in (made / "text_encoder.safetensors", tmp_path / "t.safetensors")
    ]
    assert all(torch.equal(one, other) for one, other in zip(*encoded, strict=True))


def test_weights_in_half_precision_parts_are_read(folder, made, tmp_path):
    shutil.copytree(folder, tmp_path / "sd")
    place = tmp_path / "sd/unet" / WEIGHTS
    state = {name: value.half() for name, value in safetensors.torch.load_file(place).items()}
    place.unlink()
    parts = {"one.safetensors": sorted(state)[::2], "two.safetensors": sorted(state)[1::2]}
    for file, names in parts.items():
        safetensors.torch.save_file({name: state[name] for name in names}, place.with_name(file))
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    place.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    teacher.run(
        output=tmp_path / "t.safetensors",
        table=tmp_path / "log.parquet",
        kind="stable-diffusion",
        source=tmp_path / "sd",
    )
    expected, found = (
        tensor_files.load(made / "denoiser.safetensors")[0],
        tensor_files.load(tmp_path / "t.safetensors")[0],
    )
    rounded = {name: value.half().float() for name, value in expected.items() if name.startswith("ema.")}
    assert all(torch.equal(found[name], value) for name, value in rounded.items()) and rounded
    (place.with_name("two.safetensors")).unlink()
    with pytest.raises(ValueError, match="two.safetensors is missing: a part of the weights of the UNet2DCondition"):
        teacher.run(
            output=tmp_path / "u.safetensors",
            table=tmp_path / "log.parquet",
            kind="stable-diffusion",
            source=tmp_path / "sd",
        )


def test_tokens_are_those_of_transformers_own_reader(folder, tmp_path):
    """Other filling, special tokens as mappings, odd texts."""
    shutil.copytree(folder, tmp_path / "sd")
    torchvision_operators.ensure()
    from transformers import CLIPTokenizer

    start = {"content": "<|startoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    edit(tmp_path / "sd/tokenizer/special_tokens_map.json", pad_token="!", bos_token=start)
    text_encoder.run(output=tmp_path / "t.safetensors", source=tmp_path / "sd")
    text, stock = (
        loading.load_text(tmp_path / "t.safetensors"),
        CLIPTokenizer.from_pretrained(tmp_path / "sd/tokenizer"),
    )
    prompts = ["a photo of a cat!", "dog <|endoftext|> x", "naïve  CAFÉ\n<|startoftext|>", "日本 🙂 don't 12 345"]
    ids = stock(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert stock.pad_token == "!" and ids[0, -1] == stock.convert_tokens_to_ids("!")
    with torch.no_grad():
        assert torch.equal(text.encode(prompts).states, text.encoder(ids).last_hidden_state)


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def pickled(path: Path) -> None:
    torch.save({}, path.with_suffix(".bin"))
    path.unlink()


def without(path: Path, name: str) -> None:
    found = safetensors.torch.load_file(path)
    del found[name]
    safetensors.torch.save_file(found, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (lambda p, name=name: shutil.rmtree(p / name), f"{name} is missing: the sub-folder of the")
            for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        ),
        (
            lambda p: pickled(p / "unet" / WEIGHTS),
            f"{WEIGHTS} is missing: .*UNet2DConditionModel .other formats are not",
        ),
        (lambda p: pickled(p / "vae" / WEIGHTS), f"{WEIGHTS} is missing: .*AutoencoderKL .other formats are not read"),
        (
            lambda p: pickled(p / "text_encoder/model.safetensors"),
            "model.safetensors is missing: .*CLIPTextModel .other",
        ),
        (lambda p: (p / "tokenizer/merges.txt").unlink(), "merges.txt is missing: merges.txt of the CLIP tokenizer"),
        (lambda p: (p / "tokenizer/vocab.json").write_text("{"), "tokenizer cannot be read: "),
        (
            lambda p: edit(p / "tokenizer/special_tokens_map.json", bos_token="<s>"),
            "536 tokens, but the text encoder has 535",
        ),
        (
            lambda p: edit(p / "model_index.json", unet=["diffusers", "UNet2DModel"]),
            "not UNet2DConditionModel of diffusers",
        ),
        (lambda p: edit(p / "model_index.json", unet=["my_code", "UNet"]), "not UNet2DConditionModel of diffusers"),
        (
            lambda p: edit(p / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
            "not CLIPTextModel of tr",
        ),
        (lambda p: edit(p / "unet/config.json", _class_name="UNet2DModel"), "is not UNet2DConditionModel"),
        (lambda p: edit(p / "unet/config.json", in_channels=9), "4 output channels for 9"),
        (
            lambda p: edit(p / "unet/config.json", cross_attention_dim=64),
            "text states of width 32, the network takes 64",
        ),
        (
            lambda p: edit(p / "unet/config.json", block_out_channels=[16, 64]),
            "holds another architecture: size mismatch",
        ),
        (
            lambda p: edit(p / "unet/config.json", layers_per_block=2000),
            "layers_per_block ask for 4000 blocks, more than 1024",
        ),
        (
            lambda p: edit(p / "vae/config.json", latent_channels=8),
            "its latents have 8 channels, those of the network 4",
        ),
        (lambda p: edit(p / "vae/config.json", _class_name="VQModel"), "'VQModel' is not AutoencoderKL"),
        (lambda p: edit(p / "text_encoder/config.json", model_type="t5"), "model_type 't5' is not clip_text_model"),
        (lambda p: edit(p / "text_encoder/config.json", hidden_size=64), "text_encoder holds another architecture"),
        (
            lambda p: edit(p / "text_encoder/config.json", num_hidden_layers=10**6),
            "num_hidden_layers ask for 1000000 blocks",
        ),
        (lambda p: edit(p / "text_encoder/config.json", vocab_size=100), "535 tokens, but the text encoder has 100"),
        (lambda p: edit(p / "text_encoder/config.json", hidden_act="os.system"), "CLIPTextModel: "),
        (lambda p: without(p / "text_encoder/model.safetensors", "final_layer_norm.bias"), "Missing key"),
        (lambda p: edit(p / "scheduler/scheduler_config.json", _class_name="MyScheduler"), "'MyScheduler' is none of"),
        (
            lambda p: edit(p / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
            "rescale_betas_zero_snr True, but diffusers' PNDMScheduler ignores it",
        ),
    ],
)
def test_folder_that_cannot_be_used_is_named(damage, message, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "sd")
    damage(tmp_path / "sd")
    with pytest.raises(ValueError, match=message) as refused:
        teacher.run(
            output=tmp_path / "t.safetensors",
            table=tmp_path / "log.parquet",
            kind="stable-diffusion",
            source=tmp_path / "sd",
        )
    assert "\n" not in str(refused.value) and str(tmp_path / "sd") in str(refused.value)
    assert not (tmp_path / "t.safetensors").exists()


def test_nothing_of_the_folder_is_run(folder, tmp_path):
    """Code in the folder, and configurations that name it, change nothing."""
    shutil.copytree(folder, tmp_path / "sd")
    bomb = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Bomb: pass\n"
    for name in ("text_encoder", "tokenizer", "unet", "vae"):
        (tmp_path / "sd" / name / "bomb.py").write_text(bomb)
    for name in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        edit(tmp_path / "sd" / name, auto_map={"AutoModel": "bomb.Bomb", "AutoTokenizer": ["bomb.Bomb", None]})
    teacher.run(
        output=tmp_path / "t.safetensors",
        table=tmp_path / "log.parquet",
        kind="stable-diffusion",
        source=tmp_path / "sd",
    )
    text_encoder.run(output=tmp_path / "text.safetensors", source=tmp_path / "sd")
    assert loading.load_text(tmp_path / "text.safetensors").encode(["a"]).states.isfinite().all()
    assert not (tmp_path / "ran").exists()
    assert loading.load_empty(tmp_path / "t.safetensors").shape == (77, 32)
