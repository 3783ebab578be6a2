"""Stable Diffusion as shipped, from its folder to scores, pictures and an exported pipeline, on tiny files."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from dmd import torchvision_operators
from dmd.config import merge, read_file
from dmd.data import shards
from dmd.data.prompts import Prompts
from dmd.models.loading import load_codec
from dmd.provenance import tensor_files
from dmd.sampling.noise import seeded_noise
from tests.clip_files import make_clip
from tests.inception_files import write_inception
from tests.stable_diffusion_files import WORDS, make_stable_diffusion, make_tiny_autoencoder
from tests.vgg_files import write_vgg
from tests.workflow.conftest import REPOSITORY, jobs, make

pytestmark = pytest.mark.slow

NAME = "sd15-cfg3"
NUM_PROMPTS = 64
COUNTS: dict[str, Any] = {  # what is smaller than in the paper; all else is config.yaml's
    "device": "cpu",
    "threads": 1,
    "dataset": {"resolution": 32},
    "reference": {"floor_draws": 1, "protocol": {"resize": {"size": 32}}},
    "pairs": {
        "num_pairs": NUM_PROMPTS,
        "shard_size": 16,
        "shards_per_job": 2,
        "batch_size": 16,
        "compute": {"dtype": "float32"},
    },
    "distill": {
        "method": {
            "regression_distance": {"size": 32},
            "matching_batch_size": 4,
            "regression_batch_size": 2,
            "phases": [{"updates": 6}],
        },
        "schedule": {"warmup": 1},
        "processes": 1,
        "checkpoint_every": 3,
        "grid_every": 6,
        "log_every": 1,
        "compute": {"micro_batch_size": 2, "dtype": "float32"},
    },
    "sample": {
        "num_samples": 16,
        "shard_size": 8,
        "shards_per_job": 2,
        "batch_size": 8,
        "prompts": {"num": 16},
        "compute": {"dtype": "float32"},
    },
    "evaluate": {"kid_subset": 8, "clip": {"folder": "inputs/clip", "sha256": None}},
}
SCORES = [f"results/{NAME}/{score}.json" for score in ("fid", "clip")]
OTHERS = [
    f"results/{NAME}/pictures/grid.png",
    f"results/{NAME}/pictures/samples.png",
    f"results/{NAME}/export/pipeline/model_index.json",
]


def texts(num: int) -> list[str]:
    """Distinct prompts of known words."""
    random = np.random.default_rng(0)
    found = {" ".join(random.choice(WORDS, size=5)) for _ in range(4 * num)}
    return sorted(found)[:num]


def write_inputs(folder: Path) -> None:
    """Tiny files of the formats that config.yaml names, in their places."""
    inputs = folder / "inputs"
    make_stable_diffusion(inputs / "stable-diffusion-v1-5")
    make_tiny_autoencoder(inputs / "taesd")
    make_clip(inputs / "clip")
    write_inception(inputs / "weights-inception-2015-12-05-6726825d.pth")
    write_vgg(inputs / "vgg16-397923af.pth")
    low = [f"a low score {number}" for number in range(20)]
    wanted = texts(NUM_PROMPTS)
    columns = {"TEXT": [*low, *wanted, *wanted[:9]], "AESTHETIC_SCORE": [6.2] * 20 + [6.25] * (NUM_PROMPTS + 9)}
    pq.write_table(pa.table(columns), inputs / "laion-aesthetics-6.25plus.parquet")
    captions = [{"image_id": number // 2, "id": number, "caption": text} for number, text in enumerate(texts(40))]
    (inputs / "captions_val2014.json").write_text(json.dumps({"annotations": captions}))
    (inputs / "val2014").mkdir()
    random = np.random.default_rng(1)
    for number in range(16):
        pixels = random.integers(0, 256, (36, 48, 3), np.uint8)
        Image.fromarray(pixels).save(inputs / "val2014" / f"{number:012d}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the experiment ran to its scores."""
    folder = tmp_path_factory.mktemp("text")
    config = read_file(REPOSITORY / "config.yaml")
    config["experiments"][NAME] = merge(config["experiments"][NAME], COUNTS)
    for each in config["inputs"].values():
        each["sha256"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_inputs(folder)
    start = time.monotonic()
    make(folder, "--cores", "2", *SCORES)
    print(f"{NAME} to its scores in {time.monotonic() - start:.0f} s")
    make(folder, "--cores", "2", *OTHERS)
    return folder


def test_scores_are_those_of_the_small_run(finished):
    fid, clip = (json.loads((finished / path).read_text()) for path in SCORES)
    assert fid["metric"] == "fd-inception-clean" and fid["network_calls"] == 1 and fid["num_samples"] == 16
    assert len(fid["values"]) == 1 and all(value > 0 for value in fid["values"])
    assert fid["protocol"]["resize"] == {"size": 32, "filter": "lanczos"}
    assert clip["metric"] == "clip-clip" and -1 < clip["value"] < 1


def test_prompts_are_the_distinct_texts_of_good_scores(finished):
    found = Prompts(finished / f"results/{NAME}/prompts/prompts.parquet")
    assert sorted(found.rows(range(len(found)))) == texts(NUM_PROMPTS)


def test_pairs_keep_half_precision_latents_and_their_text(finished):
    folder = finished / f"results/{NAME}/pairs"
    items = [item for path in sorted(folder.glob("*.tar")) for _, item in shards.read(path)]
    assert [int(item["label"]) for item in items] == list(range(NUM_PROMPTS))
    assert {item["image"].dtype for item in items} == {item["text"].dtype for item in items} == {np.dtype("float16")}
    assert items[0]["image"].shape == (4, 16, 16) and items[0]["text"].shape == (77, 32)


def test_exported_pipeline_draws_the_samples(finished):
    torchvision_operators.ensure()
    from diffusers import DiffusionPipeline

    base = finished / f"results/{NAME}"
    (first, *_) = sorted((base / "samples").glob("*.tar"))
    items = [item for _, item in shards.read(first)]
    captions = Prompts(base / "captions/captions.parquet").rows(range(len(items)))
    stock = DiffusionPipeline.from_pretrained(base / "export/pipeline", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    noise, _ = seeded_noise(range(len(items)), (4, 16, 16), num_classes=0)
    one = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "pt"}
    theirs = stock(captions, latents=noise, **one).images
    latents = torch.stack([torch.from_numpy(item["image"].copy()) for item in items])
    ours = load_codec(base / "teacher/autoencoder.safetensors").decode(latents)
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    card = (base / "export/pipeline/README.md").read_text()
    source = tensor_files.load_metadata(base / "teacher/denoiser.safetensors")["source_sha256"]
    assert f"# {NAME}" in card and source in card and "fd-inception-clean" in card and "| updates | 6 |" in card


def test_generator_learnt_and_pictures_are_there(finished):
    base = finished / f"results/{NAME}"
    teacher, _ = tensor_files.load(base / "teacher/denoiser.safetensors")
    generator, facts = tensor_files.load(base / "distill/generator.safetensors")
    names = [name for name in generator if name.startswith("raw.")]
    assert any(not torch.equal(generator[name], teacher["ema." + name[4:]]) for name in names)
    assert facts["sigma"] == pytest.approx(facts["sigma_max"])
    assert np.asarray(Image.open(base / "pictures/grid.png")).std() > 10
    assert np.asarray(Image.open(base / "pictures/samples.png")).std() > 10


def test_second_run_has_nothing_to_do_and_scores_are_made_again_of_samples(finished):
    assert jobs(make(finished, "--dry-run", *SCORES)) == {}
    (finished / f"results/{NAME}/fid.json").unlink()
    shutil.rmtree(finished / f"results/{NAME}/features")
    answer = make(finished, "--cores", "2", *SCORES)
    assert set(jobs(answer)) == {"features", "evaluate", "clip"}
