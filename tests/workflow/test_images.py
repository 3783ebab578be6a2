"""A folder of pictures of every kind goes through the whole chain, to a score and to pictures."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dmd.data import manifest
from dmd.provenance import tensor_files
from tests.workflow.conftest import CSV_IMAGES
from tests.workflow.photos import PER_CLASS, SCENES


@pytest.fixture
def small(finished: Path) -> Path:
    """Results of the whole chain."""
    return finished / "results" / "small"


def test_files_of_every_kind_show_the_scene_of_their_class(small: Path):
    found, _ = tensor_files.load(small / "reference" / "reference.safetensors")
    labels = torch.cat([found["training.labels"], found["held_out.labels"]])
    features = torch.cat([found["training.features"], found["held_out.features"]])
    assert labels.bincount().tolist() == [PER_CLASS] * len(SCENES)
    for label, (upper, lower, _) in enumerate(SCENES.values()):
        scene = torch.tensor([upper, upper, lower, lower]).T.flatten() / 127.5 - 1  # (channel, row, column)
        assert (features[labels == label] - scene).abs().max() < 0.1


def test_teacher_knows_shape_and_classes_of_the_folder(small: Path):
    metadata = tensor_files.load_metadata(small / "teacher" / "denoiser.safetensors")
    assert metadata["shape"] == [3, 8, 8] and metadata["num_classes"] == len(SCENES)


def test_labels_from_a_csv_file_are_those_of_the_folders(finished: Path, small: Path):
    folders = small / "images", finished / CSV_IMAGES
    facts, csv_facts = (manifest.read(folder / "manifest.parquet").metadata["facts"] for folder in folders)
    assert facts["dataset_sha256"] == csv_facts["dataset_sha256"]
    one, other = ([arrays(path) for path in sorted(folder.glob("*.tar"))] for folder in folders)
    assert one == other and one and any(".label." in name for name in one[0])


def arrays(path: Path) -> dict[str, bytes]:
    """The arrays of a shard by name, without its record."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.name.endswith(".npy")}


def test_pairs_are_images_of_both_classes(small: Path):
    pairs = manifest.read(small / "pairs" / "manifest.parquet")
    assert len(pairs.table) == 16 and len(pairs.shards) == 4
    assert set(pairs.table["label"].to_pylist()) == {0, 1}
    assert pairs.metadata["facts"]["network_calls"] == 35


def test_scores_are_finite_and_better_than_those_of_grey_images(small: Path):
    found, _ = tensor_files.load(small / "reference" / "reference.safetensors")
    grey = float(found["held_out.mean"].square().sum() + found["held_out.covariance"].trace())
    scores = {name: json.loads((small / f"{name}.json").read_text()) for name in ("fid", "kid", "prdc", "memorisation")}
    assert 0 < scores["fid"]["value"] < grey
    assert scores["fid"]["network_calls"] == 1 and scores["fid"]["num_samples"] == 32
    assert math.isfinite(scores["kid"]["value"])
    assert all(score["metric"].endswith("-pixels2") for score in scores.values())


def test_table_has_the_row_of_the_experiment(finished: Path, small: Path):
    row = pd.read_csv(finished / "results" / "tables" / "demo.csv").iloc[0]
    assert row["label"] == "small" and row["dataset"] == "images-held-out"
    assert row["value"] == json.loads((small / "fid.json").read_text())["value"]
    assert "| small |" in (finished / "results" / "tables" / "demo.md").read_text()


@pytest.mark.parametrize("name", ["grid", "training"])
def test_pictures_show_something(small: Path, name: str):
    with Image.open(small / "pictures" / f"{name}.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
