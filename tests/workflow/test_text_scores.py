"""Scores of samples made of text: which jobs a run makes, from which files."""

import copy
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd import config
from dmd.config import Experiments
from tests.clip_files import make_clip
from tests.stable_diffusion_files import make_stable_diffusion
from tests.workflow.conftest import jobs, snakemake, write_config
from tests.workflow.photos import write_photos

SOLVER = {"name": "ddim", "steps": 2}
CONFIG: dict[str, Any] = {
    "experiments": {
        "text": {
            "device": "cpu",
            "dataset": {"kind": "images", "folder": "photos", "resolution": 16, "num_held_out": "all"},
            "teacher": {"kind": "stable-diffusion", "folder": "inputs/sd"},
            "reference": {
                "features": {"kind": "pixels", "size": 2},
                "protocol": {"quantise": 256, "resize": {"size": 16}},
                "floor_draws": 2,
            },
            "sample": {
                "from": "teacher",
                "solver": SOLVER,
                "guidance": 3.0,
                "prompts": {"kind": "file", "file": "captions.parquet", "column": "caption"},
                "num_samples": 8,
                "shard_size": 4,
                "shards_per_job": 2,
            },
            "evaluate": {"clip": {"folder": "inputs/clip"}, "latency": {"dtype": "float32", "repeats": 2, "warmup": 0}},
        },
        "text-more-steps": {"extends": "text", "sample": {"solver": {"steps": 4}}},
        "text-other-clip": {"extends": "text", "evaluate": {"clip": {"folder": "inputs/other"}}},
        "text-no-clip": {"extends": "text", "evaluate": {"latency": {"repeats": 1}}},
    },
    "tables": {
        "demo": {"rows": [{"label": "two steps", "experiments": ["text"]}]},
        "quiet": {"rows": [{"label": "two steps", "experiments": ["text"], "run": False}]},
    },
}
TARGETS = ("results/text/fid.json", "results/text/clip.json", "results/text/latency.json")


def make_text_run(place: Path) -> Path:
    """A folder with all that the configuration names."""
    write_config(place, CONFIG)
    make_stable_diffusion(place / "inputs/sd", resolution=8)
    make_clip(place / "inputs/clip")
    write_photos(place / "photos")
    pq.write_table(pa.table({"caption": ["a cat in the snow", "red house", "the dog"]}), place / "captions.parquet")
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_run(tmp_path_factory.mktemp("text"))


def planned(folder: Path, *targets: str) -> tuple[dict[str, int], str]:
    answer = snakemake(folder, "--dry-run", "-p", *targets)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return dict(jobs(answer.stdout)), answer.stdout


def test_samples_of_text_are_decoded_and_judged_by_their_captions(folder):
    made, text = planned(folder, *TARGETS)
    once = ("teacher", "text_encoder", "autoencoder", "captions", "images", "reference", "sample", "features")
    assert made == dict.fromkeys((*once, "evaluate", "clip", "latency"), 1)
    (line,) = [each for each in text.splitlines() if "dmd.stages.features" in each]
    assert "--autoencoder results/text/teacher/autoencoder.safetensors" in line
    assert "--clip-network inputs/clip" in line and "--captions results/text/captions/captions.parquet" in line
    (line,) = [each for each in text.splitlines() if "dmd.stages.latency" in each]
    assert "--text-encoder" in line and "--autoencoder" in line


def test_table_runs_clip_but_never_a_stopwatch(folder):
    made, _ = planned(folder, "results/tables/demo.md")
    assert made["clip"] == made["evaluate"] == 1 and "latency" not in made
    assert planned(folder, "results/tables/quiet.md")[0] == {"tables": 1}
    clip = folder / "results/text/clip.json"
    clip.parent.mkdir(parents=True)
    clip.write_text("{}")
    _, text = planned(folder, "results/tables/quiet.md")
    assert re.search("--clips +results/text/clip.json", text)
    clip.unlink()


def test_ownership_follows_samples_and_the_network_that_judges():
    found = Experiments(config.resolve(CONFIG))
    assert found.owner("text-more-steps", "sample") == found.owner("text-more-steps", "features") == "text-more-steps"
    assert found.owner("text-more-steps", "captions") == found.owner("text-more-steps", "reference") == "text"
    assert found.owner("text-other-clip", "sample") == "text" and found.owner("text-other-clip", "clip") != "text"
    assert found.owner("text-other-clip", "features") == "text-other-clip"
    assert found.owner("text-no-clip", "features") == "text"
    clip = {"name": "clip", "sha256": None, "prefix": "A photo depicts ", "resize": None}
    assert found.spec("text", "features")["clip"] == clip
    latency = found.spec("text", "latency")
    assert latency["solver"]["steps"] == 2 and latency["guidance"] == 3.0 and "decoder" not in latency
    assert ("captions", "text") not in found.upstream("text", "latency")  # it has a prompt of its own
    assert not {"clip", "latency"} & found.spec("text", "evaluate").keys()


def test_clip_without_captions_is_refused():
    broken = copy.deepcopy(CONFIG)
    broken["experiments"]["digits"] = {
        "dataset": {"kind": "digits"},
        "reference": {"features": {"kind": "coordinates"}},
        "sample": {"num_samples": 4, "shard_size": 4},
        "evaluate": {"clip": {"folder": "inputs/clip"}},
    }
    with pytest.raises(config.ConfigError, match="digits.evaluate.clip: it needs sample.prompts"):
        config.resolve(broken)
