"""CLIP score: what stages features and clip say is what CLIP says by hand, of images or of decoded latents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from PIL import Image

from dmd import torchvision_operators
from dmd.data import manifest, prompts
from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.stages import autoencoder, clip, features
from tests.clip_files import SIZE, make_clip
from tests.stable_diffusion_files import make_stable_diffusion
from tests.stages.scored import make_block, make_reference

CAPTIONS = ["a cat in the snow", "red house", "the dog " * 60]
SECTION: dict[str, Any] = {"features": {"kind": "pixels", "size": 2}, "protocol": {"quantise": 256, "resize": None}}
SPEC: dict[str, Any] = {"name": "clip", "sha256": None, "prefix": "A photo depicts "}
FOLDER = {"kind": "images", "labels": "none", "resolution": 4, "channels": 3, "resize": "box", "crop": "center"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("networks") / "clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions, and a reference of a few pictures."""
    place = tmp_path_factory.mktemp("scored")
    prompts.write(place / "captions.parquet", [pa.array(CAPTIONS)], lambda: {})
    (place / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (4, 4), (60 * number, 9, number)).save(place / "photos" / f"{number}.png")
    dataset = {**FOLDER, "folder": str(place / "photos"), "split_seed": 0, "num_held_out": "all"}
    make_reference(place / "reference.safetensors", dataset=dataset, num_samples=4, **SECTION)
    return place


def scored(folder: Path, tmp_path: Path, network: Path, images: np.ndarray, **changes: Any) -> dict[str, torch.Tensor]:
    """Features of 4 samples, of captions 0, 1, 2 and 0, and the score in clip.json."""
    block = make_block(tmp_path / "s/blocks/0.parquet", images, np.array([0, 1, 2, 0]), first=0, num_samples=4)
    paths = {"clip_network": network, "captions": folder / "captions.parquet"}
    facts = changes.pop("facts", {})
    if facts:
        table, metadata = manifest.read_table(block)
        metadata["facts"] |= facts
        with record.publish(block, stage="sample", inputs={}) as temporary:
            manifest.write(temporary, table, metadata)
    given = {"clip": SPEC, "batch_size": 3, **paths, **SECTION, **changes}
    output = tmp_path / "features.safetensors"
    features.run(block=block, reference=folder / "reference.safetensors", output=output, **given)
    clip.run(features=[output], output=tmp_path / "clip.json", experiment="tiny")
    return tensor_files.load(output)[0]


def by_hand(network: Path, levels: np.ndarray) -> torch.Tensor:
    """Cosines of pictures uint8 (N, H, W, 3) with their captions, by transformers' own classes."""
    torchvision_operators.ensure()
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(network, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(network, local_files_only=True)
    found = []
    for picture, row in zip(levels, (0, 1, 2, 0), strict=True):
        small = np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        pixels = (torch.from_numpy(small / 255.0) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.25])
        tokens = tokenizer("A photo depicts " + CAPTIONS[row], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=pixels.permute(2, 0, 1)[None].float()).pooler_output
            read = model.get_text_features(input_ids=tokens.input_ids).pooler_output
        found.append(torch.nn.functional.cosine_similarity(seen, read)[0])
    return torch.stack(found)


def test_score_is_the_mean_cosine_that_transformers_computes(folder, network, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    images = (levels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    found = scored(folder, tmp_path, network, images)
    expected = by_hand(network, levels)
    torch.testing.assert_close(found["clip"], expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01  # each image and caption has a cosine of its own
    score = json.loads((tmp_path / "clip.json").read_text())
    assert score["value"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert score["metric"] == "clip-clip" and score["prefix"] == "A photo depicts "
    assert (score["num_samples"], score["network_calls"], score["first_seeds"]) == (4, 35, [100])
    pinned = {"clip": {**SPEC, "sha256": score["network"]["sha256"][:12]}}
    scored(folder, tmp_path, network, images, **pinned)
    assert json.loads((tmp_path / "clip.json").read_text())["metric"] == "clip"
    with pytest.raises(ValueError, match="evaluate.clip.sha256 pins 00000000"):
        scored(folder, tmp_path, network, images, clip={**SPEC, "sha256": "0" * 8})


def test_first_resizing_is_pillows_and_stands_in_the_score(folder, network, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    images = (levels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    first = {"size": 12, "filter": "lanczos"}
    small = np.stack([np.asarray(Image.fromarray(each).resize((12, 12), Image.Resampling.LANCZOS)) for each in levels])
    found = scored(folder, tmp_path / "a", network, images, clip={**SPEC, "resize": first})
    torch.testing.assert_close(found["clip"], by_hand(network, small), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "a" / "clip.json").read_text())["resize"] == first
    plain = scored(folder, tmp_path / "b", network, images, clip={**SPEC, "resize": None})
    assert (plain["clip"] - found["clip"]).abs().max() > 1e-3
    assert json.loads((tmp_path / "b" / "clip.json").read_text())["resize"] is None


def test_latents_are_seen_as_images(folder, network, tmp_path):
    source = make_stable_diffusion(tmp_path / "sd", resolution=8)
    path = tmp_path / "autoencoder.safetensors"
    autoencoder.run(source=source, output=path, kind="stable-diffusion", sha256=None)
    latent = np.random.default_rng(1).standard_normal((4, 4, 8, 8)).astype(np.float32)
    facts = {"codec": True, "image_shape": [3, 32, 32]}
    with pytest.raises(ValueError, match="holds latents: give --autoencoder"):
        scored(folder, tmp_path, network, latent, facts=facts)
    found = scored(folder, tmp_path, network, latent.astype(np.float16), facts=facts, autoencoder=path)
    with torch.no_grad():
        images = loading.load_codec(path).decode(torch.from_numpy(latent.astype(np.float16)).float())
    again = scored(folder, tmp_path, network, images.numpy())
    torch.testing.assert_close(found["features"], again["features"], rtol=0, atol=0.02)
    torch.testing.assert_close(found["clip"], again["clip"], rtol=0, atol=0.01)


def test_features_without_clip_have_no_score(folder, tmp_path):
    images = np.zeros((4, 3, 4, 4), np.float32)
    block = make_block(tmp_path / "s/blocks/0.parquet", images, np.zeros(4), first=0, num_samples=4)
    place = {"block": block, "reference": folder / "reference.safetensors", "output": tmp_path / "f.safetensors"}
    with pytest.raises(ValueError, match="--clip-network and --captions belong together"):
        features.run(**place, batch_size=4, captions=folder / "captions.parquet", **SECTION)
    features.run(**place, batch_size=4, **SECTION)
    assert "clip" not in tensor_files.load(place["output"])[0]
    with pytest.raises(ValueError, match="no CLIP cosine similarities"):
        clip.run(features=[place["output"]], output=tmp_path / "clip.json", experiment="tiny")


def pickled(place: Path) -> None:
    torch.save(safetensors.torch.load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()


def lost(place: Path) -> None:
    state = safetensors.torch.load_file(place / "model.safetensors")
    del state["visual_projection.weight"]
    safetensors.torch.save_file(state, place / "model.safetensors")


def edited(name: str, **changes: Any):
    def edit(place: Path) -> None:
        path = place / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, r"model.safetensors is missing: .*other formats are not read"),
        (lost, "holds another architecture: .*visual_projection"),
        (edited("config.json", model_type="siglip"), "model_type 'siglip' is not clip"),
        (edited("preprocessor_config.json", size=20), "the network takes 16"),
        (edited("preprocessor_config.json", resample=2), "by filter 2"),
        (lambda place: (place / "merges.txt").unlink(), "merges.txt is missing"),
    ],
)
def test_folder_that_is_no_such_network_is_refused(folder, tmp_path, damage, message):
    place = make_clip(tmp_path / "clip")
    damage(place)
    with pytest.raises(ValueError, match=message):
        scored(folder, tmp_path, place, np.zeros((4, 3, 4, 4), np.float32))
