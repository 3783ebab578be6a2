"""Datasets in IDX files: what is read, and the one message for each fault."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmd.config.sections import IdxDataset
from dmd.data import dataset, idx_files
from tests.idx_files import NAMES, idx, write_folder


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    return IdxDataset(kind="idx", folder=str(folder), **({"resolution": 8} | changes)).with_defaults()


def test_files_are_the_splits_and_keep_their_order(tmp_path):
    write_folder(tmp_path)
    training, held_out = (dataset.load(section(tmp_path), split) for split in dataset.SPLITS)
    assert training.values.shape == (12, 1, 8, 8) and held_out.values.shape == (6, 1, 8, 8)
    assert training.values.dtype == torch.uint8 and training.num_classes == 3
    assert training.labels.tolist() == [0, 1, 2] * 4 and training.sha256 == held_out.sha256
    content = gzip.decompress((tmp_path / NAMES["held_out_images"]).read_bytes())
    assert held_out.values.numpy().tobytes() == content[16:]


def test_plain_file_equals_the_gzipped_one_whatever_their_names(tmp_path):
    before = dataset.load(section(write_folder(tmp_path)), "training")
    digest = dataset.idx_splits(section(tmp_path))[1]
    for name in NAMES.values():
        (tmp_path / name).write_bytes(gzip.decompress((tmp_path / name).read_bytes()))
    after = dataset.load(section(tmp_path, sha256=digest), "training")
    assert torch.equal(before.values, after.values) and before.sha256 == after.sha256


def test_transposed_images_lie_on_their_side(tmp_path):
    write_folder(tmp_path)
    plain, turned = (dataset.load(section(tmp_path, transpose=each), "training") for each in (False, True))
    assert torch.equal(plain.values, turned.values.mT) and not torch.equal(plain.values, turned.values)
    assert plain.sha256 != turned.sha256


def test_classes_are_the_labels_of_the_training_images(tmp_path):
    write_folder(tmp_path)
    for split, count in (("training", 12), ("held_out", 6)):  # as EMNIST's letters, which count from 1
        labels = (np.arange(count) % 3 + 1).astype(np.uint8)
        (tmp_path / NAMES[f"{split}_labels"]).write_bytes(idx(labels))
    loaded = dataset.load(section(tmp_path), "held_out")
    assert loaded.num_classes == 3 and loaded.labels.tolist() == [0, 1, 2, 0, 1, 2]


IMAGES = np.zeros((12, 8, 8), np.uint8)
SHORT = gzip.compress(idx(IMAGES))[:-6]
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "labels for images": ("training_images", idx(np.zeros(12, np.uint8)), "1 dimensions, but images have 3"),
    "another type": ("training_images", idx(IMAGES, 0x0D), "its elements are float32, not uint8"),
    "another magic number": ("training_images", b"\1" + idx(IMAGES)[1:], "begins with 01 00 08 03"),
    "too short": ("training_images", idx(IMAGES)[:-1], r"ends early: 767 bytes of 768 \(12 x 8 x 8\)"),
    "cut header": ("training_images", idx(IMAGES)[:9], r"the sizes \[\]"),
    "trailing bytes": ("training_images", idx(IMAGES) + b"\0", "goes on after the 768 bytes"),
    "huge sizes": ("training_images", idx(IMAGES)[:4] + b"\xff" * 12, r"the sizes \[4294967295"),
    "no images": ("training_images", idx(IMAGES[:0]), r"the sizes \[0, 8, 8\]"),
    "cut gzip": ("training_images", SHORT, "cannot be read as an IDX file"),
    "empty": ("held_out_labels", b"", "it is empty"),
    "page": ("held_out_images", b"<!DOCTYPE html>", "HTML or XML page"),
    "another count": ("training_labels", idx(np.zeros(11, np.uint8)), "12 images, but .* has 11 labels"),
    "another side": (
        "held_out_images",
        idx(np.zeros((6, 9, 8), np.uint8)),
        "9 x 8 pixels, but dataset.resolution is 8",
    ),
    "unknown label": ("held_out_labels", idx(np.full(6, 7, np.uint8)), r"the labels \[7\] are those of no training"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_one_line_that_names_the_file(name, tmp_path):
    key, content, reason = FAULTS[name]
    path = write_folder(tmp_path) / NAMES[key]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        dataset.load(section(tmp_path), "training")
    assert str(tmp_path) in str(caught.value) and str(caught.value).isprintable()


def test_damaged_gzip_is_refused_by_its_checksum(tmp_path):
    content = bytearray(gzip.compress(idx(IMAGES)))
    content[-8] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        idx_files.read(tmp_path / "a", 3)


def test_other_contents_than_the_pinned_ones_are_refused_with_their_digest(tmp_path):
    write_folder(tmp_path)
    found = dataset.idx_splits(section(tmp_path))[1]
    assert dataset.load(section(tmp_path, sha256=found[:8]), "training")
    with pytest.raises(ValueError, match=re.escape(f"have sha256 {found}, but dataset.sha256 pins abcdef12")):
        dataset.load(section(tmp_path, sha256="abcdef12"), "training")
