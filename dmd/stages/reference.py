"""Stage reference: features and moments of real data, and the floor that finite samples leave."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from dmd.cluster import job, reporting, torch_setup
from dmd.config.sections import Reference
from dmd.data import dataset as datasets
from dmd.data.images import ImageReader
from dmd.importers import feature_files, moments_file
from dmd.metrics import frechet, resizing
from dmd.metrics.features import FeatureNetwork, check_levels, extract
from dmd.metrics.moments import Moments
from dmd.provenance import pinned, record
from dmd.provenance import tensors as tensor_files

BATCH_SIZE = 256  # of feature networks whose section names none


def run(
    *,
    output: Path,
    network: Path | None = None,
    statistics: Path | None = None,
    images: Path | None = None,
    moments: dict[str, Any] | None = None,
    against: str = "held_out",
    features: dict[str, Any],
    protocol: dict[str, Any],
    floor_draws: int,
    seed: int,
    num_samples: int,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes what samples are compared with: features of both splits of a dataset, of all of it, or published moments.

    Of each split (or of `all`, where all images are held out) there are features, labels, predicted classes, mean and
    covariance; of published moments mean and covariance alone.

    Args:
        output: the reference file. Its metadata: features, protocol, num_classes, modes, dataset, floor, and
            real_distance (between training and held-out images: what an exact copier of the training images gets).
        network: weights of the feature network, where its kind has any; the spec's `features.sha256` pins
            them.
        images: images/manifest.parquet.
        statistics: .npz of mu and sigma, in place of images; `moments.sha256` pins it.
        against: the split that samples are compared with, held_out or training; the floor is that of this split.
            EDM compares with the training images.
        protocol: {"quantise": levels or null, "resize": null, or {"size", "filter"} of images that are larger}.
        floor_draws, seed, num_samples: see `frechet.floor` and, of published moments, `frechet.gaussian_floor`.

    Raises:
        ValueError: a file is not the pinned one, neither or both of images and moments are given, or the protocol
            asks for something unknown.
    """
    spec = {
        "moments": moments,
        "against": None if against == "held_out" else against,
        "features": features,
        "protocol": protocol,
        "floor_draws": floor_draws,
        "seed": seed,
        "num_samples": num_samples,
        "device": device,
        "threads": threads,
    }
    spec = {name: value for name, value in spec.items() if value is not None}
    _check(images, moments, statistics, against, protocol)
    torch_setup.set_threads(threads)
    with record.exclusive(output):
        splits = {} if images is None else _splits(images)
        modes = next(iter(splits.values())).modes if splits else None
        extractor, identity = feature_files.load(network, features, modes=modes)
        extractor.to(torch_setup.choose_device(device))
        check_levels(extractor, protocol["quantise"])
        inputs = record.check_inputs(network=network, images=images, statistics=statistics)
        draws = {"num_samples": num_samples, "num_splits": floor_draws, "seed": seed}
        if statistics is None:
            passes = {"protocol": protocol, "batch_size": features.get("batch_size", BATCH_SIZE)}
            found, facts = _of_images(splits, extractor, passes, against, draws)
        else:
            found, facts = _of_moments(statistics, moments or {}, extractor, draws)
        facts |= {
            "features": identity,
            "protocol": protocol,
            "num_classes": extractor.num_classes if splits else 0,
            "modes": modes,
        }
        reporting.log(f"floor of {extractor.name} at {num_samples} samples: {facts['floor']}")
        with record.publish(output, stage="reference", inputs=inputs) as temporary:
            tensor_files.write(temporary, found, {**record.provenance("reference", spec, inputs), **facts})


def _check(
    images: Path | None,
    moments: dict[str, Any] | None,
    statistics: Path | None,
    against: str,
    protocol: dict[str, Any],
) -> None:
    """ValueError for numbers that contradict each other."""
    resizing.check(protocol["resize"], protocol["quantise"])
    if (images is None) == (statistics is None) or (moments is None) != (statistics is None):
        raise ValueError(
            "a reference is made of images (--images), or of a file of moments (--statistics), and of one of them"
        )
    if against not in datasets.SPLITS:
        raise ValueError(f"against is {against!r}; it may be {' or '.join(datasets.SPLITS)}")


def _of_moments(
    path: Path, moments: dict[str, Any], extractor: FeatureNetwork, draws: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The file's tensors, and what it says of published moments."""
    digest = pinned.check(path, moments.get("sha256"), key="moments.sha256", source="mean and covariance of features")
    mean, covariance = moments_file.load(path)
    if extractor.num_features not in (None, len(mean)):
        raise ValueError(f"{path} is of {len(mean)} features, but {extractor.name} has {extractor.num_features}")
    floor = frechet.gaussian_floor(mean, covariance, **draws)
    found = {"moments.mean": mean, "moments.covariance": covariance}
    return found, {
        "against": "moments",
        "dataset": {"name": path.stem, "sha256": digest},
        "floor": {"num_samples": draws["num_samples"], "kind": "gaussian", **_summary(floor)},
        "real_distance": None,
    }


def _splits(images: Path) -> dict[str, ImageReader]:
    """Both splits; the only one is called `all`."""
    held_out = ImageReader(images, "held_out")
    if held_out.splits == ["held_out"]:
        return {datasets.ALL: held_out}
    return {"training": ImageReader(images, "training"), "held_out": held_out}


def _of_images(
    splits: dict[str, ImageReader],
    extractor: FeatureNetwork,
    passes: dict[str, Any],
    against: str,
    draws: dict[str, int],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The file's tensors, and what it says of a dataset."""
    whole = datasets.ALL in splits
    found, moments = _measure(splits, extractor, **passes)
    against = datasets.ALL if whole else against
    floor = frechet.floor(found[f"{against}.features"], **draws)
    return found, {
        **({} if against == "held_out" else {"against": against}),
        "dataset": {"name": splits[against].name, "sha256": splits[against].sha256},
        "floor": {"num_samples": draws["num_samples"], **_summary(floor)},
        "real_distance": None if whole else frechet.moments_distance(moments["training"], moments["held_out"]),
    }


def _measure(
    splits: dict[str, ImageReader], extractor: FeatureNetwork, *, protocol: dict[str, Any], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Moments]]:
    """The file's tensors, and the moments of each split."""
    found: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}
    for split, data in splits.items():
        values, predicted = _features(data, extractor, protocol, batch_size)
        moments[split] = Moments.of(values)
        found[f"{split}.features"] = values
        found[f"{split}.predicted"] = predicted
        found[f"{split}.labels"] = data.labels
        found[f"{split}.mean"] = moments[split].mean
        found[f"{split}.covariance"] = moments[split].covariance
    return found, moments


def _features(
    data: ImageReader, extractor: FeatureNetwork, protocol: dict[str, Any], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features (N, d) and predicted classes (N,) of real images, quantised and resized as the samples will be."""
    batches = torch.arange(len(data)).split(batch_size)
    parts = [
        extract(extractor, data.batch(indices), protocol["quantise"], protocol["resize"])
        for indices in reporting.progress(batches, total=len(batches), unit="batches")
    ]
    return torch.cat([values for values, _ in parts]), torch.cat([predicted for _, predicted in parts])


def _summary(floor: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (divisor num - 1; null of one) and number of the floor's splits."""
    std = stdev(floor) if len(floor) > 1 else None
    return {"mean": fmean(floor), "std": std, "num": len(floor)}


if __name__ == "__main__":
    job.main(run, Reference)
