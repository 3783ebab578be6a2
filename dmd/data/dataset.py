"""Real data: digits, images of a folder, IDX files, glyphs of a font, points of a Gaussian mixture; in two splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmd.data import captions, glyphs, idx_files, image_file, image_folder
from dmd.data.captions import Captions

SPLITS = ("training", "held_out")
PATHS = ("folder", "labels", "file", "sha256", "captions")  # keys of sources, whose contents count
SOURCES = ("images", "glyphs")  # kinds that are read in parts
ALL = "all"  # num_held_out of a folder whose images are all held out


@dataclass(frozen=True)
class Dataset:
    """One split of a dataset, all of it in memory.

    Attributes:
        values: (N, C, H, W); float32 in [-1, 1], or uint8 levels 0..255 (folders of images: a quarter of the memory).
        labels: int64 (N,), class index or -1; for a mixture, the index of the component of each point.
        num_classes: classes a denoiser is conditioned on; 0 = unconditional, as for a mixture.
        sha256: digest of both splits and of the settings that shape them, without the path of the folder.
    """

    values: Tensor
    labels: Tensor
    num_classes: int
    sha256: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def images(self) -> Tensor:
        """All images as float32 in [-1, 1], shape (N, C, H, W)."""
        return as_float(self.values)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at int64 `indices` (B,) as float32 in [-1, 1], shape (B, C, H, W)."""
        return as_float(self.values[indices])


def load(dataset: Mapping[str, Any], split: str) -> Dataset:
    """Loads one split of the dataset that a config section describes.

    A permutation seeded by `split_seed` puts its first items into `training`, the rest into `held_out`. The splits of
    a mixture are independent draws: asking for more of one leaves the other as it is.

    Raises:
        ValueError: unknown kind or split, an empty split, or a file that cannot be used, which the message names.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    kinds = {
        "digits": _digits,
        "images": _images,
        "idx": _idx,
        "glyphs": _images,
        "gaussian-mixture": _gaussian_mixture,
    }
    kind = dataset.get("kind")
    if kind not in kinds:
        raise ValueError(f"dataset.kind {kind!r} is none of {', '.join(kinds)}")
    return kinds[kind](dataset, split)


def _digits(dataset: Mapping[str, Any], split: str) -> Dataset:
    """scikit-learn's 1797 scans of handwritten digits: 8x8, 17 grey levels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = _split(len(pixels), dataset["num_training"], dataset["split_seed"], split)
    images = (pixels.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    labels = labels.astype(np.int64)
    digest = _digest(dataset, images.tobytes(), labels.tobytes())
    return Dataset(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]), 10, digest)


def _gaussian_mixture(dataset: Mapping[str, Any], split: str) -> Dataset:
    """Points (N, 2, 1, 1) of an isotropic Gaussian mixture; `weights` are relative."""
    means, stds, weights = (np.asarray(dataset[key], np.float64) for key in ("means", "stds", "weights"))
    if means.ndim != 2 or not len(means) == len(stds) == len(weights):
        raise ValueError(
            f"dataset: means {means.shape}, stds {stds.shape} and weights {weights.shape} differ in length"
        )
    if (stds < 0).any() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(
            f"dataset: stds {stds.tolist()} and weights {weights.tolist()} must not be negative, nor all weights 0"
        )
    num = dataset["num_training" if split == "training" else "num_held_out"]
    if num < 1:
        raise ValueError(f"dataset: the {split} split has {num} points")
    generator = np.random.default_rng([dataset["seed"], SPLITS.index(split)])
    modes = generator.choice(len(means), size=num, p=weights / weights.sum())
    points = means[modes] + stds[modes, None] * generator.standard_normal((num, means.shape[1]))
    images = torch.from_numpy(points.astype(np.float32))[:, :, None, None]
    return Dataset(images, torch.from_numpy(modes.astype(np.int64)), 0, _digest(dataset))


def _images(dataset: Mapping[str, Any], split: str) -> Dataset:
    """Image files of a folder (see `image_file` for their conversion), or glyphs."""
    source = _source(dataset)
    labels, chosen = source.labels, source.chosen(split)
    return Dataset(source.read(chosen), labels[chosen], source.num_classes, source.sha256)


def _idx(dataset: Mapping[str, Any], split: str) -> Dataset:
    """Images and labels of IDX files; the classes are the labels of the training images, in their order."""
    pixels, contents = idx_splits(dataset)
    classes = np.unique(pixels["training"][1])
    idx_files.check_classes(pixels["held_out"][1], classes, Path(dataset["folder"], dataset["held_out_labels"]))
    values, labels = pixels[split]
    values = values.swapaxes(1, 2) if dataset["transpose"] else values
    return Dataset(
        torch.from_numpy(np.ascontiguousarray(values[:, None])),
        torch.from_numpy(np.searchsorted(classes, labels).astype(np.int64)),
        len(classes),
        _digest({key: dataset[key] for key in ("kind", "resolution", "transpose")}, contents.encode()),
    )


def idx_splits(dataset: Mapping[str, Any]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """Images (N, R, R) and labels (N,) of each split, uint8, and the digest of the four files, as `dataset.sha256`."""
    folder, pixels, digests = Path(dataset["folder"]), {}, []
    for part in SPLITS:
        images = idx_files.read(folder / dataset[f"{part}_images"], 3)
        labels = idx_files.read(folder / dataset[f"{part}_labels"], 1)
        digests += [images.sha256, labels.sha256]
        pixels[part] = idx_files.labelled(images, labels, dataset["resolution"])
    contents = hashlib.sha256("".join(digests).encode()).hexdigest()
    if not contents.startswith(pinned := dataset.get("sha256") or ""):
        raise ValueError(f"{folder}: its four files have sha256 {contents}, but dataset.sha256 pins {pinned}")
    return pixels, contents


class Folder:
    """Images of a folder; `read` reads some of them.

    Attributes:
        labels: int64 (N,), of all files in order; -1 if there are no classes.
        num_classes: 0 if there are no classes.
        captions: of all files in order; None if the dataset has no captions.
    """

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        """Lists the files; ValueError names one that has no label or no caption."""
        self._dataset, self._folder = dataset, Path(dataset["folder"])
        self._names = image_folder.names(self._folder)
        labels, self.num_classes = image_folder.labels(self._folder, self._names, dataset["labels"])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        table = dataset.get("captions", "none")
        self.captions = None if table == "none" else captions.of_files(Path(table), self._names, self._folder)

    @property
    def sha256(self) -> str:
        """Digest of all files, their names, labels and captions, and of the settings that shape the images."""
        captions = [] if self.captions is None else [self.captions]
        index = json.dumps([self._names, self.labels.tolist(), *captions]).encode()
        return _digest(self._dataset, index, *(image_file.sha256(self._folder / name) for name in self._names))

    def chosen(self, split: str) -> np.ndarray:
        """Indices of the files of a split."""
        return _chosen(self._dataset, len(self._names), split, self._folder)

    def read(self, chosen: np.ndarray) -> Tensor:
        """Some images, uint8 (n, C, H, W)."""
        keys = ("resolution", "channels", "resize", "crop")
        paths = [self._folder / self._names[index] for index in chosen]
        return torch.from_numpy(image_file.read(paths, **{key: self._dataset[key] for key in keys}))


class Glyphs:
    """Glyphs of a font with their captions; attributes and methods are those of `Folder`."""

    num_classes = 0

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        """Reads the captions; ValueError if they cannot be used."""
        self._dataset, by_character = dataset, captions.of_code_points(Path(dataset["captions"]))
        self._characters, self.captions = [*by_character], [*by_character.values()]
        self.labels = torch.full((len(by_character),), -1)

    @property
    def sha256(self) -> str:
        """Digest of all pictures and captions, and of the settings that shape them."""
        index = json.dumps([self._characters, self.captions]).encode()
        return _digest(self._dataset, index, self.read(np.arange(len(self._characters))).numpy().tobytes())

    def chosen(self, split: str) -> np.ndarray:
        """Indices of the glyphs of a split."""
        return _chosen(self._dataset, len(self._characters), split, Path(self._dataset["captions"]))

    def read(self, chosen: np.ndarray) -> Tensor:
        """Some pictures, uint8 (n, 3, R, R)."""
        characters = [self._characters[index] for index in chosen]
        file, resolution = Path(self._dataset["file"]), self._dataset["resolution"]
        return torch.from_numpy(glyphs.draw(file, characters, resolution=resolution))


def _source(dataset: Mapping[str, Any]) -> Folder | Glyphs:
    return Glyphs(dataset) if dataset["kind"] == "glyphs" else Folder(dataset)


def _chosen(dataset: Mapping[str, Any], num: int, split: str, source: Path) -> np.ndarray:
    """Indices of one split of the `num` images of a source."""
    num_held_out = dataset["num_held_out"]
    if num_held_out == ALL:
        if split == "training":
            raise ValueError(f"dataset.num_held_out is all: no image of {source} is left to train on")
        return np.arange(num)
    if not 0 <= num_held_out < num:
        raise ValueError(f"dataset.num_held_out is {num_held_out}, but {source} has {num} images")
    return _split(num, num - num_held_out, dataset["split_seed"], split)


def _split(num: int, num_training: int, seed: int, split: str) -> np.ndarray:
    """Indices of one split of `num` items."""
    if not 0 < num_training <= num:
        raise ValueError(f"dataset.num_training is {num_training}, but there are {num} images")
    order = np.random.default_rng(seed).permutation(num)
    chosen = order[:num_training] if split == "training" else order[num_training:]
    if len(chosen) == 0:
        raise ValueError(f"dataset: the {split} split is empty ({num_training} of {num} images are for training)")
    return chosen


def _digest(dataset: Mapping[str, Any], *contents: bytes) -> str:
    """SHA-256 of the settings (without paths) and the contents."""
    settings = {key: value for key, value in dataset.items() if key not in PATHS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def parts(dataset: Mapping[str, Any], split: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `values` and `labels`, as in `Dataset`, in parts of `size` items; reads images one part at a time."""
    if dataset.get("kind") in SOURCES:
        source = _source(dataset)
        for indices in np.array_split(chosen := source.chosen(split), range(size, len(chosen), size)):
            yield source.read(indices), source.labels[indices]
        return
    loaded = load(dataset, split)
    yield from zip(loaded.values.split(size), loaded.labels.split(size), strict=True)


def captions_of(dataset: Mapping[str, Any], splits: Sequence[str]) -> list[Captions] | None:
    """Captions of the images of all `splits`, in the order of `parts`; None if the dataset has no captions."""
    if dataset.get("kind") not in SOURCES or (source := _source(dataset)).captions is None:
        return None
    return [source.captions[index] for split in splits for index in source.chosen(split)]


def describe(dataset: Mapping[str, Any]) -> tuple[int, str]:
    """Number of classes and digest of a dataset, both over all splits."""
    if dataset.get("kind") in SOURCES:
        source = _source(dataset)
        return source.num_classes, source.sha256
    training = load(dataset, "training")
    return training.num_classes, training.sha256


def as_float(values: Tensor) -> Tensor:
    """Images as float32 in [-1, 1]: converts uint8 levels, returns float32 values unchanged."""
    return values.to(torch.float32) / 127.5 - 1 if values.dtype == torch.uint8 else values
