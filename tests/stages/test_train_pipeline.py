"""A Stable Diffusion from nothing: each training, its folder as stock diffusers and this project open it, its score."""

import json
from pathlib import Path

import matplotlib
import pytest
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.config.pipeline_sections import ImageText, LatentDenoiser, Latents, TrainedAutoencoder
from dmd.config.rule_table import CLIP, FOLDER
from dmd.data.captions import FIELDS
from dmd.data.image_shards import ImageReader
from dmd.data.manifest import read_table
from dmd.data.prompts import Prompts
from dmd.importers import clip_files
from dmd.methods.base import Facts, Part
from dmd.models import vocabulary
from dmd.models.compute import set_tf32
from dmd.models.image_text import ImageText as Network
from dmd.models.loading import load_codec, load_text
from dmd.provenance import tensor_files
from dmd.sampling.sampler import Sampler
from dmd.stages import (
    autoencoder,
    images,
    latents,
    prompts,
    retrieval,
    sample,
    save_clip,
    save_pipeline,
    teacher,
    text_encoder,
    train_autoencoder,
    train_denoiser,
    train_text,
)
from dmd.train import checkpoints, new_network, state
from dmd.train.captioned_images import AugmentedStream, CaptionedStream

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
LETTERS = {"A": "first letter", "B": "second letter", "X": "a cross", "O": "a ring", "I": "a bar", "T": "a table"}
SHORT = {"optimisers": {"student": {"learning_rate": 1.0e-3, "gradient_clip": 1.0}}, "ema_decay": 0.5}
SHORT |= {"schedule": {"warmup": 1}}


def training(name: str, updates: int, batch_size: int, **method: object) -> dict[str, object]:
    return {"method": {"name": name, "batch_size": batch_size, "phases": [{"updates": updates}], **method}, **SHORT}


TEXT = ImageText.model_validate(
    {
        **{"vocabulary": 30, "length": 8, "embedding": 16, "augmentation": {"shift": 0.1}},
        **{"text": {"width": 16, "layers": 1, "heads": 2}, "captions": "all"},
        **{"image": {"width": 16, "layers": 1, "heads": 2, "patch_size": 4}},
        "training": training("contrastive", 60, 10),
    }
)
AUTOENCODER = TrainedAutoencoder.model_validate(
    {"widths": [8, 8, 8], "groups": 4, "training": training("autoencoding", 6, 4), "augmentation": {"flip": True}}
)
DENOISER = LatentDenoiser.model_validate(
    {
        **{"widths": [8, 16], "attention": [True, False], "groups": 4, "head_width": 4, "prediction": "v"},
        "training": training("denoising", 5, 4, levels="table", label_dropout=0.2),
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder with all artifacts."""
    folder = tmp_path_factory.mktemp("pipeline")
    table = folder / "captions.csv"
    rows = [f"{ord(letter):X},{split},{text}" for letter, words in LETTERS.items() for split, text in
            (("training", words), ("training", f"letter {letter}"), ("held_out", f"{words} {letter}"))]  # fmt: skip
    table.write_text("\n".join(["codepoint,split,caption", *rows]))
    dataset = {"kind": "glyphs", "file": str(FONT), "sha256": None, "captions": str(table), "resolution": 16}
    manifest = folder / "images" / "manifest.parquet"
    images.run(output=manifest, dataset={**dataset, "split_seed": 0, "num_held_out": 1}, shard_size=4)
    text, codec, unet = folder / "text", folder / "autoencoder", folder / "denoiser"
    train_text.run(
        images=manifest,
        output=text / "text_encoder.safetensors",
        image_text=text / "image_text.safetensors",
        table=text / "log.parquet",
        section=TEXT,
        cadence={"log_every": 1, "checkpoint_every": 40},
    )
    train_autoencoder.run(
        images=manifest, output=codec / "autoencoder.safetensors", table=codec / "log.parquet", section=AUTOENCODER
    )
    views = Latents.model_validate({"views": 3, "augmentation": {"shift": 0.2}, "shard_size": 4})
    latents.run(
        images=manifest,
        autoencoder=codec / "autoencoder.safetensors",
        output=folder / "latents" / "manifest.parquet",
        section=views,
    )
    inputs = {"text_encoder": text / "text_encoder.safetensors", "autoencoder": codec / "autoencoder.safetensors"}
    train_denoiser.run(
        latents=folder / "latents" / "manifest.parquet",
        **inputs,
        output=unet / "denoiser.safetensors",
        table=unet / "log.parquet",
        section=DENOISER,
    )
    save_pipeline.run(denoiser=unet / "denoiser.safetensors", **inputs, output=folder / "folder" / "model_index.json")
    save_clip.run(image_text=text / "image_text.safetensors", output=folder / "clip" / "config.json")
    return folder


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not path.name.startswith(".")}


def test_folders_hold_just_the_files_that_the_rules_name_in_half_precision(trained):
    assert files(trained / "folder") == {*FOLDER, "model_index.json"}
    assert files(trained / "clip") == {*CLIP, "config.json"}
    for path in (*(trained / "folder").rglob("*.safetensors"), *(trained / "clip").rglob("*.safetensors")):
        assert {value.dtype for value in safetensors.torch.load_file(path).values()} == {torch.float16}
    assert not list(trained.rglob("checkpoints"))


def test_contrast_learns_to_tell_the_pictures_apart(trained):
    table, _ = read_table(trained / "text" / "log.parquet")
    losses = table["loss/contrastive"].to_pylist()
    assert len(losses) == 60 and sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_scaling_factor_gives_latents_unit_variance(trained):
    codec = load_codec(trained / "autoencoder" / "autoencoder.safetensors")
    data = ImageReader(trained / "images" / "manifest.parquet", "training")
    latent = codec.encode(data.batch(torch.arange(len(data))))
    assert latent.shape == (5, 4, 4, 4) and float(latent.std()) == pytest.approx(1, rel=1e-3)


def test_latents_are_those_of_the_images_then_of_changed_views_with_the_same_captions(trained):
    data = ImageReader(trained / "images" / "manifest.parquet", "training")
    found = ImageReader(trained / "latents" / "manifest.parquet", "training")
    every = torch.arange(5)
    codec = load_codec(trained / "autoencoder" / "autoencoder.safetensors")
    assert len(found) == 15
    torch.testing.assert_close(found.batch(every), codec.encode(data.batch(every)), rtol=1e-4, atol=1e-5)
    for view in (5, 10):
        assert not torch.allclose(found.batch(every + view), found.batch(every), atol=1e-3)
        assert found.captions(every + view) == data.captions(every)


def test_progress_counts_latents(trained, tmp_path, caplog):
    caplog.set_level("INFO", logger="dmd")
    latents.run(
        images=trained / "images" / "manifest.parquet",
        autoencoder=trained / "autoencoder" / "autoencoder.safetensors",
        output=tmp_path / "latents" / "manifest.parquet",
        section=Latents(views=2),
    )
    assert "10/10 latents" in caplog.text


def test_stock_diffusers_draws_what_the_imported_teacher_draws(trained, tmp_path):
    torchvision_operators.ensure()
    from diffusers import StableDiffusionPipeline

    out, source = tmp_path / "teacher", trained / "folder"
    kind = {"kind": "stable-diffusion", "source": source}
    teacher.run(output=out / "denoiser.safetensors", table=out / "log.parquet", **kind)
    text_encoder.run(output=out / "text_encoder.safetensors", source=source)
    autoencoder.run(output=out / "autoencoder.safetensors", **kind)
    words = ["a ring", "a cross and a bar, longer than the network reads"]
    stock = StableDiffusionPipeline.from_pretrained(source, local_files_only=True, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    solver = {"name": "pndm", "steps": 5, "spacing": None}
    sampler = Sampler(out / "denoiser.safetensors", solver=solver, guidance=3.0)
    states = load_text(out / "text_encoder.safetensors").encode(words).states
    (batch,) = sampler.batches(range(2), fixed_labels=torch.arange(2), states=states)
    ours = load_codec(out / "autoencoder.safetensors").decode(batch.image)
    given = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "pt"}
    theirs = stock(words, latents=batch.noise, **given).images
    assert ours.std() > 0.01
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=1e-3, rtol=0)


def test_folder_has_the_trained_weights(trained):
    whole, facts = tensor_files.load(trained / "denoiser" / "denoiser.safetensors")
    saved = safetensors.torch.load_file(trained / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {f"ema.unet.{name}" for name in saved} == {name for name in whole if name.startswith("ema.")}
    for name, value in saved.items():
        torch.testing.assert_close(value.float(), whole[f"ema.unet.{name}"], atol=1e-3, rtol=1e-3)
    assert facts["text"] == {"length": 8, "width": 16} and facts["image_shape"] == [3, 16, 16]


def test_saved_clip_gives_the_cosines_of_the_trained_one(trained):
    found, _, _ = clip_files.load(trained / "clip", sha256=None)
    tensors, facts = tensor_files.load(trained / "text" / "image_text.safetensors")
    network = Network(**facts["image_text"]).eval()
    network.load_state_dict(tensors)
    words = ["a ring", "letter X"]
    levels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures, texts, _ = network(levels / 127.5 - 1, network.tokens(words))
    torch.testing.assert_close(found(levels, words), (pictures * texts).sum(1), atol=5e-3, rtol=0)


def test_retrieval_of_samples_and_of_real_images(trained, tmp_path):
    """Samples of an untrained network are found by chance; every score is a fraction, and real images have one, too."""
    source = {"kind": "captions", "split": "held_out", "num": None, "seed": 0}
    captions, block = tmp_path / "captions.parquet", tmp_path / "samples" / "blocks" / "00000-00000.parquet"
    prompts.run(images=trained / "images" / "manifest.parquet", output=captions, source=source)
    numbers = {"weights": "ema", "first_seed": 0, "batch_size": 5, "labels": "random", "shard_size": 5}
    sample.run(
        denoiser=trained / "denoiser" / "denoiser.safetensors",
        output=block,
        solver={"name": "ddim", "steps": 2, "spacing": None},
        **{**numbers, "num_samples": 5, "first": 0, "last": 0},
        prompts=captions,
        text_encoder=trained / "text" / "text_encoder.safetensors",
    )
    retrieval.run(
        samples=[block],
        captions=captions,
        clip_network=trained / "clip",
        images=trained / "images" / "manifest.parquet",
        autoencoder=trained / "autoencoder" / "autoencoder.safetensors",
        output=tmp_path / "retrieval.json",
        experiment="letters",
        clip={"sha256": None, "prefix": "", "resize": None, "name": "clip"},
    )
    score = json.loads((tmp_path / "retrieval.json").read_text())
    assert score["num_prompts"] == 5 and score["num_samples"] == 5 and score["network_calls"] == 2
    assert 0 <= score["top1"]["value"] <= score["top5"]["value"] == 1 and score["metric"] == "retrieval-clip-clip"
    places = [place for of_prompt in score["ranks"].values() for place in of_prompt]
    assert len(score["ranks"]) == 5 and score["top1"]["value"] == pytest.approx(places.count(1) / 5)
    assert score["real"]["top1"] >= 0.6 and score["autoencoder"]["top5"] == 1
    assert score["nearest"]["distance"] > 0 and score["nearest"]["held_out"] > 0
    real = retrieval.RealImages(trained / "images" / "manifest.parquet", Prompts(captions))
    data = ImageReader(trained / "images" / "manifest.parquet", "training")
    image, every = data.batch(torch.arange(len(data))), torch.arange(len(data))
    for copy in (image, image.flip(-1)):
        distance, row = real.nearest(copy)
        assert distance.max() < 1e-6 and row.equal(every)
    assert real.nearest(image.sign())[0].equal(real.nearest(1.5 * image.sign())[0])


def test_rows_of_a_stream_do_not_depend_on_how_processes_share_them(trained):
    data = ImageReader(trained / "images" / "manifest.parquet", "training")
    stream = CaptionedStream(
        AugmentedStream(data, TEXT.augmentation),
        tuple(FIELDS),
        lambda texts: {"size": torch.tensor([*map(len, texts)])},
    )
    part = Part("images", 6, "images")

    def rows(mine: slice) -> dict[str, torch.Tensor]:
        return stream.rows(part, 0, mine, torch.Generator().manual_seed(5))

    whole, halves = rows(slice(0, 6)), [rows(slice(0, 4)), rows(slice(4, 6))]
    for name, value in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value)
    assert len(set(whole["size"].tolist())) > 1


def test_resumed_training_ends_with_the_same_weights(trained, tmp_path):
    data = ImageReader(trained / "images" / "manifest.parquet", "training")
    tokenizer = vocabulary.train(["a ring", "a bar"], merges=5, length=8)
    facts = tensor_files.load_metadata(trained / "text" / "image_text.safetensors")["image_text"]
    network = {**facts, "tokenizer": tokenizer}
    encoder = Network(**network)

    def loop(folder: Path) -> new_network.TrainingLoop:
        stream = CaptionedStream(
            AugmentedStream(data, TEXT.augmentation), ("training",), lambda texts: {"tokens": encoder.tokens(texts)}
        )
        return new_network.loop(
            TEXT.training.model_copy(update={"method": TEXT.training.method.model_copy(update={"batch_size": 4})}),
            lambda: Network(**network),
            Facts(data.shape, 0, data.sigma_data),
            {"images": stream},
            device=torch.device("cpu"),
            stage="train_text",
            section="pipeline.text.training",
            provenance={"test": 1},
            folder=folder,
        )

    whole = loop(tmp_path / "whole")
    whole.run()
    begun = loop(tmp_path / "begun")
    begun.trainer.start()
    rows = [
        {"update": update, "phase": 0, **begun.trainer.update(begun.plan.clock(update), begun.loader.take(update))}
        for update in range(50)
    ]
    tensors = state.state(begun.trainer)
    checkpoints.save(begun.checkpoints, key=begun.key, stage="train_text", update=50, tensors=tensors, rows=rows)
    resumed = loop(tmp_path / "begun")
    assert len(resumed.run()) == 60
    weights = [state.student_weights(each.trainer, None) for each in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(("stage", "section"), [(train_text, TEXT), (train_autoencoder, AUTOENCODER)])
def test_tf32_is_as_the_training_says(trained, tmp_path, stage, section, allowed):
    keys = {"compute": {"tf32": allowed}, "method": {**section.training.method.spec(), "phases": [{"updates": 1}]}}
    short = type(section).model_validate({**section.spec(), "training": {**section.training.spec(), **keys}})
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("output", "image_text")}
    if stage is train_autoencoder:
        del paths["image_text"]
    try:
        set_tf32({"tf32": not allowed})
        stage.run(
            images=trained / "images" / "manifest.parquet", **paths, table=tmp_path / "log.parquet", section=short
        )
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    finally:
        set_tf32({})


def test_vocabulary_does_not_depend_on_the_order_of_texts_and_reads_what_it_never_saw():
    texts = ["red apple", "green apple", "a red, red rose"]
    found = vocabulary.train(texts, merges=12, length=10)
    assert found == vocabulary.train(texts[::-1], merges=12, length=10)
    assert vocabulary.size(found) == 2 * 256 + 12 + 2
    merges = found["merges.txt"].splitlines()[1:]
    assert len(merges) == 12 and "re d</w>" in merges


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": {"width": 16, "layers": 1, "heads": 2, "patch_size": 5}}, "patches of 5 pixels"),
    ],
)
def test_images_that_do_not_fit_the_network_are_refused(trained, tmp_path, changed, message):
    section = ImageText.model_validate({**TEXT.spec(), **changed})
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("output", "image_text")}
    with pytest.raises(ValueError, match=message):
        train_text.run(
            images=trained / "images" / "manifest.parquet", **paths, table=tmp_path / "log.parquet", section=section
        )
    assert not list(tmp_path.glob("*.safetensors"))
