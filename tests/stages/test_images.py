"""Stage images: shards of a dataset with named splits, the same images as in memory, read in any order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmd.data import dataset as datasets
from dmd.data import manifest
from dmd.data.image_shards import ImageReader
from dmd.provenance import record
from dmd.stages import images

DIGITS = {"kind": "digits", "split_seed": 0, "num_training": 1000}
MIXTURE = {"kind": "gaussian-mixture", "means": [[-1.0, 0.0], [1.0, 0.0]], "stds": [0.2, 0.2], "weights": [1.0, 1.0]}
MIXTURE |= {"num_training": 50, "num_held_out": 30, "seed": 0}


@pytest.fixture
def folder(tmp_path) -> dict:
    """Section of a folder of 14 grey images in two classes."""
    random = np.random.default_rng(0)
    for number in range(14):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
    numbers = {"kind": "images", "folder": str(tmp_path / "pictures"), "labels": "folders", "resolution": 8}
    return numbers | {"channels": 1, "resize": "lanczos", "crop": "center", "split_seed": 0, "num_held_out": 4}


def made(tmp_path: Path, dataset: dict, shard_size: int = 7) -> Path:
    images.run(output=tmp_path / "images" / "manifest.parquet", dataset=dataset, shard_size=shard_size)
    return tmp_path / "images" / "manifest.parquet"


@pytest.mark.parametrize("in_memory", [0, 2**30])
@pytest.mark.parametrize("kind", ["digits", "mixture", "folder"])
def test_every_split_has_the_images_and_labels_of_the_dataset(kind, in_memory, folder, tmp_path):
    dataset = {"digits": DIGITS, "mixture": MIXTURE, "folder": folder}[kind]
    path = made(tmp_path, dataset, 600 if kind == "digits" else 7)
    for split in datasets.SPLITS:
        expected, found = datasets.load(dataset, split), ImageReader(path, split, in_memory=in_memory)
        assert len(found) == len(expected) and torch.equal(found.labels, expected.labels)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1))[:40]
        assert torch.equal(found.batch(order), expected.batch(order))
        assert (found.num_classes, found.sha256) == (expected.num_classes, expected.sha256)
        assert found.shape == tuple(expected.images.shape[1:]) and found.name == dataset["kind"]
    training = datasets.load(dataset, "training").images.double()
    assert ImageReader(path, "training").sigma_data == round(training.std(correction=0).item(), 6)


def test_the_manifest_numbers_its_rows_and_says_its_splits(folder, tmp_path):
    path = made(tmp_path, folder)
    found = manifest.read(path)
    assert [shard.num for shard in found.shards] == [7, 7]
    assert found.metadata["facts"]["splits"] == {"training": [0, 10], "held_out": [10, 14]}
    assert found.table["index"].to_pylist() == list(range(14)) and set(found.table["seed"].to_pylist()) == {-1}


def test_a_folder_of_which_all_is_held_out_has_one_split(folder, tmp_path):
    path = made(tmp_path, folder | {"num_held_out": "all"})
    assert len(ImageReader(path, "held_out")) == 14
    with pytest.raises(ValueError, match="has no split 'training'; its splits are held_out"):
        ImageReader(path, "training")


def test_the_same_dataset_gives_the_same_bytes(folder, tmp_path):
    one, other = made(tmp_path / "one", folder), made(tmp_path / "other", folder)
    assert record.check(one.parent / "00001.tar") == record.check(other.parent / "00001.tar")


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_a_damaged_shard_is_refused_by_name(in_memory, folder, tmp_path):
    path = made(tmp_path, folder)
    content = bytearray((path.parent / "00001.tar").read_bytes())
    content[2000] ^= 1
    (path.parent / "00001.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"00001\.tar is damaged"):
        ImageReader(path, "held_out", in_memory=in_memory).batch(torch.tensor([3]))


def test_a_manifest_of_pairs_is_no_manifest_of_images(manifest_file):
    with pytest.raises(ValueError, match="it is no manifest of images"):
        ImageReader(manifest_file, "training")
