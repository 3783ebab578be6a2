"""Pairs and samples of text: each item's prompt, its text states beside it, latents as stock diffusers makes them."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dmd
from dmd.data import manifest, shards
from dmd.data.pairs import PairReader
from dmd.models import loading
from dmd.provenance import tensor_files
from dmd.provenance.files import sha256
from dmd.sampling.noise import seeded_noise
from dmd.stages import manifest as manifest_stage
from dmd.stages import pairs, sample
from tests.text_files import PROMPTS, import_all, write_prompts

SOLVER = {"name": "euler", "steps": 3, "sigma_min": 0.03, "sigma_max": 14.0, "rho": 7.0}
NUMBERS = {"solver": SOLVER, "first_seed": 2**31, "batch_size": 4, "labels": "random", "guidance": 3.0}
NUMBERS |= {"shard_size": 3, "first": 0, "last": 1}
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Imported files and prompts; not to be changed."""
    folder = tmp_path_factory.mktemp("text")
    import_all(folder, resolution=8)
    write_prompts(folder / "prompts", PROMPTS)
    return folder


def texts(chain: Path, prompts: Path | None = None) -> dict[str, Path]:
    return {
        "prompts": prompts or chain / "prompts" / "prompts.parquet",
        "text_encoder": chain / "teacher" / "text_encoder.safetensors",
    }


def make(folder: Path, chain: Path, *, prompts: Path | None = None, **changed) -> Path:
    numbers = NUMBERS | changed
    block = folder / "blocks" / f"{numbers['first']:05d}-{numbers['last']:05d}.parquet"
    pairs.run(teacher=chain / "teacher" / "denoiser.safetensors", output=block, **texts(chain, prompts), **numbers)
    return block


@pytest.fixture(scope="module")
def made(chain, tmp_path_factory) -> Path:
    """Block of six pairs of five prompts; not to be changed."""
    return make(tmp_path_factory.mktemp("made") / "pairs", chain)


def items(block: Path) -> list[shards.Item]:
    return [item for shard in manifest.read(block).shards for _, item in shards.read(shard.path)]


def test_pair_i_has_prompt_i_modulo_their_number_and_the_states_of_the_encoder(made, chain, caplog, tmp_path):
    found = items(made)
    assert [int(item["label"]) for item in found] == [0, 1, 2, 3, 4, 0]
    noise, _ = seeded_noise(range(2**31, 2**31 + 6), SHAPE, num_classes=0)
    states = loading.load_text(texts(chain)["text_encoder"]).encode([*PROMPTS, PROMPTS[0]]).states
    for index, item in enumerate(found):
        assert sorted(item) == ["image", "label", "noise", "text"]
        assert np.array_equal(item["noise"], noise[index].numpy())
        assert item["text"].dtype == np.float16 and item["image"].dtype == np.float32
        np.testing.assert_allclose(item["text"], states[index].numpy(), rtol=1e-3, atol=1e-3)
    assert np.array_equal(found[0]["text"], found[5]["text"]) and not np.array_equal(found[0]["text"], found[1]["text"])
    caplog.set_level(logging.INFO, logger="dmd")
    make(tmp_path, chain)
    assert "has 5 prompts: later items use them again" in caplog.text


def test_block_says_calls_guidance_and_that_images_are_latents(made):
    facts = manifest.read(made).metadata["facts"]
    assert facts["network_calls"] == 3 and facts["guidance"] == 3.0 and facts["num_truncated"] == 0
    assert facts["codec"] is True and facts["image_shape"] == [3, 32, 32]
    assert facts["shape"] == list(SHAPE) and facts["sigma"] == 14.0
    assert sorted(manifest.read(made).metadata["inputs"]) == ["denoiser", "prompts", "text_encoder"]


@pytest.fixture(scope="module")
def scheduled(chain, tmp_path_factory) -> Path:
    """A block by PNDM in 4 steps; not to be changed."""
    solver = {"name": "pndm", "steps": 4}
    return make(tmp_path_factory.mktemp("scheduled") / "pairs", chain, solver=solver, last=0)


def test_first_timestep_of_a_scheduler_is_recorded(scheduled):
    facts = manifest.read(scheduled).metadata["facts"]
    assert facts["first_timestep"] == 751.0 and facts["network_calls"] == 5 and 14 < facts["sigma"] < 15


def test_latents_are_those_of_the_stock_pipeline_for_the_same_noise_and_prompt(scheduled, chain):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(chain / "source", safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for index, item in enumerate(items(scheduled)):
        given = torch.from_numpy(item["noise"].copy())[None]
        numbers = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": given, "output_type": "latent"}
        expected = pipeline(PROMPTS[index], **numbers).images[0]
        np.testing.assert_allclose(item["image"], expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 6])
def test_noise_is_bit_equal_and_latents_equal_across_batch_sizes(made, chain, tmp_path, batch_size):
    found = items(make(tmp_path, chain, batch_size=batch_size))
    for item, expected in zip(found, items(made), strict=True):
        assert all(item[name].tobytes() == expected[name].tobytes() for name in ("noise", "label", "text"))
        np.testing.assert_allclose(item["image"], expected["image"], rtol=0, atol=1e-4)


def test_guidance_and_prompt_change_latents_and_half_precision_only_rounds_them(made, chain, tmp_path):
    first = items(made)[0]["image"]
    without = items(make(tmp_path / "without", chain, guidance=1.0, last=0))
    assert np.abs(without[0]["image"] - first).max() > 1e-3
    other = write_prompts(tmp_path / "prompts", ["red", *PROMPTS[1:]])
    changed = items(make(tmp_path / "other", chain, prompts=other, last=0))
    assert np.abs(changed[0]["image"] - first).max() > 1e-3
    assert np.array_equal(changed[1]["image"], items(made)[1]["image"])
    half = items(make(tmp_path / "half", chain, dtype="float16", last=0))
    assert half[0]["image"].dtype == np.float16 and half[0]["noise"].dtype == np.float32
    assert np.array_equal(half[0]["image"], first.astype(np.float16))


def test_a_restarted_block_and_more_pairs_make_only_what_is_missing(made, chain, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(made.parents[1], folder)
    tars = [folder / f"0000{number}.tar" for number in range(2)]
    before, content = [path.stat().st_mtime_ns for path in tars], tars[1].read_bytes()
    tars[1].unlink()
    make(folder, chain)
    assert tars[0].stat().st_mtime_ns == before[0] and tars[1].read_bytes() == content
    before = [path.stat().st_mtime_ns for path in tars]
    make(folder, chain, first=2, last=2)
    assert [path.stat().st_mtime_ns for path in tars] == before and (folder / "00002.tar").is_file()


def test_prompts_that_the_tokenizer_cuts_are_counted_in_every_block(chain, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    long = write_prompts(tmp_path / "prompts", ["a cat", "a cat " * 100, "a dog", "red " * 2500])
    blocks = [make(tmp_path / "pairs", chain, prompts=long, first=number, last=number) for number in range(2)]
    assert [manifest.read(block).metadata["facts"]["num_truncated"] for block in blocks] == [1, 2]
    assert "1 of 3 prompts are longer than the text encoder allows: truncated" in caplog.text
    whole = tmp_path / "pairs" / "manifest.parquet"
    manifest_stage.run(blocks=blocks, output=whole, num=6, shard_size=3)
    assert manifest.read(whole).metadata["facts"]["num_truncated"] == 3


def test_reader_gives_text_states_as_the_condition(made, tmp_path):
    whole = tmp_path / "manifest.parquet"
    manifest_stage.run(blocks=[made], output=whole, num=6, shard_size=3)
    noise, condition, image = PairReader(manifest.read(whole), seed=0).batch(0, 6)
    assert condition.dtype == noise.dtype == image.dtype == torch.float32 and condition.shape == (6, 77, 32)
    order = [
        int(np.flatnonzero([np.array_equal(item["noise"], one) for item in items(made)])[0]) for one in noise.numpy()
    ]
    assert sorted(order) == list(range(6)) != order
    for row, index in enumerate(order):
        assert np.array_equal(condition[row].numpy(), items(made)[index]["text"].astype(np.float32))


@pytest.fixture(scope="module")
def generator(chain, tmp_path_factory) -> Path:
    """The teacher as a one-step generator."""
    path = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    content, metadata = tensor_files.load(chain / "teacher" / "denoiser.safetensors")
    weights = {name: value for name, value in content.items() if name.startswith("ema.")}
    sigma = metadata["sigma_max"]
    tensor_files.save(path, weights, metadata | {"kind": "generator", "sigma": sigma, "calls": {"sigmas": [sigma]}})
    return path


def draw(folder: Path, chain: Path, denoiser: Path, **changed) -> list[shards.Item]:
    numbers = NUMBERS | {"weights": "ema", "num_samples": 6, "first_seed": 0, "guidance": 1.0} | changed
    block = folder / "blocks" / "00000-00001.parquet"
    sample.run(denoiser=denoiser, output=block, **texts(chain), **numbers)
    return items(block)


def test_samples_are_latents_with_the_row_of_their_caption(chain, generator, tmp_path):
    found = draw(tmp_path, chain, generator, solver={"name": "student"})
    assert [int(item["label"]) for item in found] == [0, 1, 2, 3, 4, 0]
    assert all(sorted(item) == ["image", "label"] and item["image"].dtype == np.float32 for item in found)
    noise, _ = seeded_noise(range(6), SHAPE, num_classes=0)
    denoiser, metadata = loading.load_denoiser(generator)
    states = loading.load_text(texts(chain)["text_encoder"]).encode([*PROMPTS, PROMPTS[0]]).states
    square = metadata["preconditioning"]["alphas_cumprod"][-1]
    sigma = torch.full((6,), metadata["sigma_max"])
    eps = denoiser.predict(noise, torch.full((6,), 999.0), states)
    expected = (noise - (1 - square) ** 0.5 * eps) / square**0.5
    for item, image, direct in zip(found, expected, denoiser(noise / square**0.5, sigma, states), strict=True):
        np.testing.assert_allclose(item["image"], image, rtol=0, atol=2e-4 * float(image.abs().max()))
        np.testing.assert_allclose(item["image"], direct, rtol=0, atol=2e-4 * float(image.abs().max()))


def test_teacher_is_sampled_with_its_own_guidance(chain, tmp_path):
    teacher = chain / "teacher" / "denoiser.safetensors"
    found = draw(tmp_path / "a", chain, teacher, guidance=8.0)
    same = draw(tmp_path / "b", chain, teacher, guidance=1.0)
    assert np.abs(found[0]["image"] - same[0]["image"]).max() > 1e-3
    assert manifest.read(tmp_path / "a" / "blocks" / "00000-00001.parquet").metadata["facts"]["guidance"] == 8.0


def test_lora_of_others_is_added_to_the_teacher_as_its_spec_says(chain, tmp_path):
    """A file of one layer, in two steps of LCM: latents change as its scale says, and its digest is compared."""
    teacher, file = chain / "teacher" / "denoiser.safetensors", tmp_path / "pytorch_lora_weights.safetensors"
    width = tensor_files.load(teacher)[0]["ema.unet.conv_out.weight"].shape[1]
    random = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, width, 3, 3, generator=random), torch.randn(4, 2, 1, 1, generator=random)
    parts = {"lora_A": down, "lora_B": up}
    save_file({f"unet.conv_out.{name}.weight": value for name, value in parts.items()}, file)
    solver = {"name": "lcm", "steps": 2, "spacing": "leading"}
    plain = draw(tmp_path / "plain", chain, teacher, solver=solver)
    lora, found = {"sha256": sha256(file)}, {}
    for scale in (0.0, 1.0):
        changed = {"lora": lora | {"scale": scale}, "lora_file": file}
        found[scale] = draw(tmp_path / str(scale), chain, teacher, solver=solver, **changed)
    for none, without, full in zip(found[0.0], plain, found[1.0], strict=True):
        assert np.array_equal(none["image"], without["image"])
        assert np.abs(full["image"] - without["image"]).max() > 1e-2
    with pytest.raises(ValueError, match="sample.lora.sha256 pins"):
        draw(tmp_path / "odd", chain, teacher, solver=solver, lora={"sha256": "0" * 64, "scale": 1.0}, lora_file=file)
    with pytest.raises(ValueError, match="--lora-file and `lora` of the spec must be given together"):
        draw(tmp_path / "odd", chain, teacher, solver=solver, lora_file=file)


def test_load_draws_pixels_of_prompts(chain, generator, tmp_path):
    files = {"text_encoder": texts(chain)["text_encoder"], "autoencoder": chain / "teacher" / "autoencoder.safetensors"}
    draws = dmd.load(generator, **files, device="cpu", batch_size=4)
    images = draws(PROMPTS)
    assert draws.shape == (3, 32, 32) and images.shape == (5, 3, 32, 32) and images.dtype == torch.float32
    kept = draw(tmp_path, chain, generator, solver={"name": "student"})
    decoded = loading.load_codec(files["autoencoder"]).decode(torch.from_numpy(np.stack([x["image"] for x in kept])))
    torch.testing.assert_close(images, decoded[:5], rtol=0, atol=1e-4)
    four = draws("a red house", num=4, seed=1)
    torch.testing.assert_close(four[0], images[1], rtol=0, atol=1e-5)
    assert (four[1] - four[2]).abs().max() > 1e-3
    latents = dmd.load(generator, text_encoder=files["text_encoder"], device="cpu")("a red house", seed=1)
    torch.testing.assert_close(latents[0], torch.from_numpy(kept[1]["image"].copy()), rtol=0, atol=1e-4)
    teacher = chain / "teacher" / "denoiser.safetensors"
    first = dmd.load(teacher, **files, device="cpu", steps=2, guidance=3.0)("a cat")
    assert (first - dmd.load(teacher, **files, device="cpu", steps=2)("a cat")).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "is neither a non-empty text nor a list of non-empty texts"),
        ({"prompt": ["a cat", " "]}, "is neither a non-empty text nor a list of non-empty texts"),
        ({"prompt": 16}, "is neither a non-empty text nor a list of non-empty texts"),
        ({"prompt": ["a cat", "a dog"], "num": 3}, "2 prompts for num 3"),
        ({"prompt": []}, "num: 0 is not at least 1"),
        ({"prompt": "a cat", "seed": -1}, "seed: -1 is outside"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(chain, generator, given, message):
    draws = dmd.load(generator, text_encoder=texts(chain)["text_encoder"], device="cpu")
    with pytest.raises(ValueError, match=message):
        draws(**given)


def test_files_and_numbers_that_do_not_belong_together_are_refused(chain, generator, teacher_file, tmp_path):
    encoder = texts(chain)["text_encoder"]
    with pytest.raises(ValueError, match="guidance 0.5 is not 1"):
        make(tmp_path, chain, guidance=0.5)
    with pytest.raises(ValueError, match="is a student, which is sampled without"):
        draw(tmp_path, chain, generator, solver={"name": "student"}, guidance=3.0)
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        make(tmp_path, chain, dtype="int8")
    with pytest.raises(ValueError, match="solver 'pnmd': .* use one of .*'pndm'"):
        dmd.load(chain / "teacher" / "denoiser.safetensors", text_encoder=encoder, solver="pnmd")
    with pytest.raises(ValueError, match="the condition of this denoiser is not text"):
        dmd.load(teacher_file, text_encoder=encoder)
    with pytest.raises(ValueError, match="give both or neither"):
        dmd.load(generator, autoencoder=encoder)
    with pytest.raises(ValueError, match="states: they are needed if the condition is text"):
        dmd.load(generator)(2)
    with pytest.raises(ValueError, match="--prompts and --text-encoder must be given together"):
        pairs.run(teacher=teacher_file, output=tmp_path / "b" / "blocks" / "x.parquet", text_encoder=encoder, **NUMBERS)
    with pytest.raises(ValueError, match="takes no prompts"):
        numbers = NUMBERS | {"guidance": 2.0}
        pairs.run(teacher=teacher_file, output=tmp_path / "c" / "blocks" / "x.parquet", **numbers)
