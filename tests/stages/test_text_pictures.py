"""The contact sheet: teacher and generator side by side, for the same prompt and noise."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dmd.data import manifest as manifests
from dmd.data import prompts as prompt_files
from dmd.models.loading import load_codec, load_text
from dmd.report import contact_sheet
from dmd.report.paired_images import PairedSamplers
from dmd.sampling.sampler import Sampler
from dmd.stages import pictures
from dmd.train import grids
from tests.text_files import import_with_generator

PROMPTS = ["a red house in the snow", "a photo of a cat", "costs $5 or $6"]
SOLVER = {"name": "pndm", "steps": 4, "spacing": "leading"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files of a tiny Stable Diffusion, a generator of other weights, three prompts and a log."""
    folder = tmp_path_factory.mktemp("sheet")
    found = import_with_generator(folder)
    found |= {"prompts": folder / "prompts.parquet", "table": folder / "log.parquet"}
    prompt_files.write(found["prompts"], [pa.array(PROMPTS)], lambda: {})
    manifests.write(found["table"], pa.table({"update": [0, 1], "loss/fake": [1.0, 0.5]}), {})
    return found


def test_sides_show_what_each_draws_for_the_same_prompt_and_noise(places):
    samplers = [
        Sampler(places["teacher"], solver=SOLVER, guidance=3.0),
        Sampler(places["generator"], solver={"name": "student"}),
    ]
    codec = load_codec(places["autoencoder"])
    states = load_text(places["text_encoder"]).encode(PROMPTS).states
    rows = torch.arange(3)
    found = PairedSamplers(*samplers, codec).draw(range(5, 8), fixed_labels=rows, states=states)
    assert list(found) == ["teacher: 5 network calls", "student: 1 network call"]
    for sampler, images in zip(samplers, found.values(), strict=True):
        latents = torch.cat([each.image for each in sampler.batches(range(5, 8), fixed_labels=rows, states=states)])
        torch.testing.assert_close(images, codec.decode(latents), atol=1e-4, rtol=0)
    one, other = found.values()
    assert (one - other).abs().mean() > 0.01


def test_contact_sheet_is_a_picture_with_all_its_prompts(places, tmp_path):
    paths = {name: places[name] for name in ("teacher", "generator", "table", "prompts", "text_encoder", "autoencoder")}
    for name in ("one", "two"):
        outputs = {"grid": tmp_path / name / "grid.png", "training": tmp_path / name / "training.png"}
        pictures.run(**paths, **outputs, solver=SOLVER, guidance=3.0, num_images=3)
    first, second = ((tmp_path / name / "grid.png").read_bytes() for name in ("one", "two"))
    assert first == second
    pixels = np.asarray(Image.open(tmp_path / "one" / "grid.png").convert("RGB"))
    assert pixels.shape[1] > 1000 and pixels.std() > 10


def test_long_prompts_are_shortened_and_no_formula(tmp_path):
    text = contact_sheet.shortened("word " * 100 + "$x$")
    assert len(text.splitlines()) == contact_sheet.LINES and text.endswith("...")
    assert contact_sheet.shortened("costs $5") == r"costs \$5"


def test_grids_of_latents_show_what_they_decode_to(places, tmp_path):
    codec = load_codec(places["autoencoder"])
    latents = torch.randn(4, 4, 16, 16)
    images = grids.decode_small(latents, codec)
    torch.testing.assert_close(images, codec.decode(latents), atol=1e-5, rtol=0)
    large = grids.decode_small(torch.randn(1, 4, 64, 64), codec)
    assert large.shape == (1, 3, grids.SIDE, grids.SIDE)
    grids.save_grid(tmp_path / "decoded.png", images)
    grids.save_grid(tmp_path / "latents.png", latents)
    assert Image.open(tmp_path / "decoded.png").size == Image.open(tmp_path / "latents.png").size == (128, 128)
    assert {Image.open(tmp_path / name).mode for name in ("decoded.png", "latents.png")} == {"RGB"}
