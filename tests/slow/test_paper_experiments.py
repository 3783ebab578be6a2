"""The paper's experiments as shipped, run to their end on tiny files of the released formats."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dmd.config import merge, read_file
from tests.edm_files import make_edm_pickle
from tests.inception_files import write_inception
from tests.vgg_files import write_vgg
from tests.workflow.conftest import REPOSITORY, snakemake

pytestmark = pytest.mark.slow

ADM = {"family": "adm", "resolution": 64, "width": 16, "multipliers": [1, 1, 4], "blocks": 1, "attention": [16]}
DDPMPP = {"family": "ddpmpp", "resolution": 32, "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [16]}
TEACHERS = {  # name of the input -> the network in its file
    "edm-imagenet64": {**ADM, "num_classes": 1000},
    "edm-cifar10-cond": {**DDPMPP, "num_classes": 10, "augment": 9},
    "edm-cifar10-uncond": {**DDPMPP, "augment": 9},
}
COUNTS: dict[str, Any] = {  # what is smaller than in the paper; all else is config.yaml's
    "device": "cpu",
    "threads": 1,
    "reference": {"floor_draws": 1},
    "pairs": {"num_pairs": 4, "shard_size": 2, "shards_per_job": 1, "batch_size": 2, "solver": {"steps": 4}},
    "distill": {
        "schedule": {"warmup": 1},
        "checkpoint_every": 1,
        "grid_every": 2,
        "monitor": {"num_images": 4, "seeds": 4},
    },
    "sample": {"num_samples": 4, "shard_size": 2, "shards_per_job": 2, "batch_size": 2},
    "evaluate": {"kid_subset": 2, "neighbours": 1},
}
DMD = {"matching_batch_size": 2, "regression_batch_size": 1, "phases": [{"updates": 2}]}
FAKES = {"batch_size": 2, "phases": [{"updates": 2, "fake_updates": 2}]}
SIDA = [{"updates": 1, "train": "fake"}, {"updates": 1, "adversarial_scale": 0.0}, {"updates": 1}]
TWICE = {"batch_size": 2, "phases": [{"updates": 2}]}
CD = {**TWICE, "levels": {"number": {"count": 3}}}
PD = {"batch_size": 2, "phases": [{"steps": 2, "updates": 1}, {"steps": 1, "updates": 1}]}
TRACT = {"levels": 4, "batch_size": 2, "phases": [{"groups": 1, "updates": 2}]}
EXPERIMENTS: dict[str, dict[str, Any]] = {  # experiment -> what is smaller in its method
    "cifar10-cond": DMD,
    "cifar10-uncond": DMD,
    "imagenet64": DMD,
    "imagenet64-dmd2-no-gan": FAKES,
    "imagenet64-dmd2": FAKES,
    "imagenet64-sid": FAKES,
    "imagenet64-sida": {"batch_size": 2, "phases": SIDA},
    "imagenet64-f-distill": FAKES,
    "imagenet64-diff-instruct": FAKES,
    "imagenet64-cd": CD,
    "imagenet64-pd": PD,
    "imagenet64-tract": TRACT,
    "imagenet64-boot": {**TWICE, "levels": 3, "boundary_batch_size": 1},
    "imagenet64-dfno": TWICE,
    "cifar10-uncond-sid": FAKES,
    "cifar10-cond-sid": FAKES,
    "cifar10-cond-sida": {"batch_size": 2, "phases": SIDA},
    "cifar10-cond-f-distill": FAKES,
    "cifar10-cond-diff-instruct": FAKES,
    "cifar10-uncond-cd": CD,
    "cifar10-uncond-pd": PD,
    "cifar10-uncond-tract": TRACT,
    "cifar10-uncond-dfno": {"batch_size": 2, "phases": [{"updates": 1}, {"updates": 1, "learning_rate_scale": 0.5}]},
    "cifar10-uncond-kd": {"regression_batch_size": 2, "phases": [{"updates": 2}]},
}
SAMPLERS = {"imagenet64-teacher-ancestral": 4}  # experiment that samples the teacher -> network calls here
CLASSES = {"imagenet64-images": 1000, "cifar10-images": 10}
NAMES = [*EXPERIMENTS, *SAMPLERS]
FEATURES = 2048


def tiny_configuration() -> dict[str, Any]:
    """config.yaml with smaller counts, and digests that any file of the format has."""
    config = read_file(REPOSITORY / "config.yaml")
    for name, method in EXPERIMENTS.items():
        smaller = merge(COUNTS, {"distill": {"method": method}})
        config["experiments"][name] = merge(config["experiments"][name], smaller)
    for name, steps in SAMPLERS.items():
        smaller = merge(COUNTS, {"sample": {"solver": {"steps": steps}}})
        config["experiments"][name] = merge(config["experiments"][name], smaller)
    for each in config["inputs"].values():
        each["sha256"] = None
    return config


@pytest.fixture(scope="module")
def targets(request: pytest.FixtureRequest) -> list[str]:
    """fid.json of the experiments that `-k` leaves; of all without it."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    asked = {item.callspec.params["name"] for item in items if hasattr(item, "callspec")}
    return [f"results/{name}/fid.json" for name in NAMES if name in asked or not asked]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, targets: list[str]) -> Path:
    """A folder in which the targets ran."""
    folder = tmp_path_factory.mktemp("paper")
    config = tiny_configuration()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    places = {name: folder / each["file"] for name, each in config["inputs"].items() if "file" in each}
    (folder / "inputs").mkdir()
    for seed, (name, numbers) in enumerate(TEACHERS.items()):
        make_edm_pickle(places[name], **numbers, seed=seed)
    write_inception(places["inception"])
    write_vgg(places["vgg16"])
    for name, classes in CLASSES.items():
        for label in range(classes):
            path = folder / config["inputs"][name]["folder"] / f"{label:04}" / "image.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (label % 256, label // 256, 90)).save(path)
    random = np.random.default_rng(0)
    for name in ("cifar10-moments", "imagenet64-moments"):
        factor = random.normal(size=(FEATURES, 64)) / 8
        np.savez(places[name], mu=random.random(FEATURES), sigma=factor @ factor.T)
    start = time.monotonic()
    answer = snakemake(folder, "--cores", "2", *targets)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    seconds = time.monotonic() - start
    print(f"{len(targets)} experiments in {seconds:.0f} s")
    assert "localrule fetch:" not in answer.stdout
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_paper_experiment_ends_with_its_distance(finished, name):
    score = json.loads((finished / "results" / name / "fid.json").read_text())
    assert score["metric"] == "fd-inception"
    assert score["network_calls"] == SAMPLERS.get(name, 1)
    assert score["num_samples"] == 4
    assert len(score["values"]) == 3
    assert all(np.isfinite(value) and value > 0 for value in score["values"])


def test_a_second_run_has_nothing_to_do(finished, targets):
    answer = snakemake(finished, "--cores", "1", *targets)
    assert "Nothing to be done" in answer.stdout + answer.stderr
