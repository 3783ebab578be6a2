"""Stage reference: features and moments of real data, and the floor: the distance due to sampling noise alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from dmd.config.sections import Reference
from dmd.data import dataset as datasets
from dmd.data.image_shards import ImageReader
from dmd.importers import feature_files, moments_file
from dmd.jobs import job, reporting, torch_setup
from dmd.metrics import frechet, resizing
from dmd.metrics.features import FeatureNetwork, check_levels, extract
from dmd.metrics.moments import Moments
from dmd.provenance import pinned, record, tensor_files

BATCH_SIZE = 256  # for feature networks whose section has no key batch_size


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
    """Writes the reference that samples are compared with, from a dataset or from published moments.

    It holds features, labels, predicted classes, mean and covariance of each split (`all` if all images are held out);
    of published moments only mean and covariance.

    Args:
        output: the reference file. Its metadata: features, protocol, num_classes, modes, dataset, floor, and
            real_distance, the distance between training and held-out images, which copies of the training images
            would get.
        network: weights of the feature network, if its kind has any; checked against `features.sha256`.
        images: images/manifest.parquet.
        statistics: .npz file of mu and sigma, instead of images; checked against `moments.sha256`.
        against: the split that samples are compared with, and the floor is computed for: held_out or training. EDM
            compares with the training images.
        protocol: {"quantise": number of levels, or null; "resize": {"size", "filter"} for larger images, or null}.
        floor_draws, seed, num_samples: see `frechet.bootstrap_floor`, and for published moments
            `frechet.gaussian_floor`.

    Raises:
        ValueError: a file has another digest, neither or both of images and moments are given, or the protocol is
            invalid.
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
    with record.writing(output):
        splits = {} if images is None else _splits(images)
        modes = next(iter(splits.values())).modes if splits else None
        extractor, identity = feature_files.load(network, features, modes=modes)
        extractor.to(torch_setup.choose_device(device))
        check_levels(extractor, protocol["quantise"])
        inputs = record.check_inputs(network=network, images=images, statistics=statistics)
        draws = {"num_samples": num_samples, "num_draws": floor_draws, "seed": seed}
        if statistics is None:
            passes = {"protocol": protocol, "batch_size": features.get("batch_size", BATCH_SIZE)}
            tensors, facts = _from_images(splits, extractor, passes, against, draws)
        else:
            tensors, facts = _from_moments(statistics, moments or {}, extractor, draws)
        facts |= {
            "features": identity,
            "protocol": protocol,
            "num_classes": extractor.num_classes if splits else 0,
            "modes": modes,
        }
        reporting.log(f"floor of {extractor.name} at {num_samples} samples: {facts['floor']}")
        with record.publish(output, stage="reference", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, {**record.provenance("reference", spec, inputs), **facts})


def _check(
    images: Path | None,
    moments: dict[str, Any] | None,
    statistics: Path | None,
    against: str,
    protocol: dict[str, Any],
) -> None:
    """ValueError for arguments that contradict each other."""
    resizing.check(protocol["resize"], protocol["quantise"])
    if (images is None) == (statistics is None) or (moments is None) != (statistics is None):
        raise ValueError(
            "give either images (--images), or a file of moments (--statistics) with `moments` in the spec"
        )
    if against not in datasets.SPLITS:
        raise ValueError(f"against is {against!r}, not {' or '.join(datasets.SPLITS)}")


def _from_moments(
    path: Path, moments: dict[str, Any], extractor: FeatureNetwork, draws: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the file for published moments."""
    digest = pinned.check(path, moments.get("sha256"), key="moments.sha256", source="mean and covariance of features")
    mean, covariance = moments_file.load(path)
    if extractor.num_features not in (None, len(mean)):
        raise ValueError(f"{path} has {len(mean)} features, but {extractor.name} has {extractor.num_features}")
    floor = frechet.gaussian_floor(mean, covariance, **draws)
    return {"moments.mean": mean, "moments.covariance": covariance}, {
        "against": "moments",
        "dataset": {"name": path.stem, "sha256": digest},
        "floor": {"num_samples": draws["num_samples"], "kind": "gaussian", **_summary(floor)},
        "real_distance": None,
    }


def _splits(images: Path) -> dict[str, ImageReader]:
    """Both splits; a single one is called `all`."""
    held_out = ImageReader(images, "held_out")
    if held_out.splits == ["held_out"]:
        return {datasets.ALL: held_out}
    return {"training": ImageReader(images, "training"), "held_out": held_out}


def _from_images(
    splits: dict[str, ImageReader],
    extractor: FeatureNetwork,
    passes: dict[str, Any],
    against: str,
    draws: dict[str, int],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the file for a dataset."""
    single = datasets.ALL in splits
    tensors, moments = _measure(splits, extractor, **passes)
    against = datasets.ALL if single else against
    floor = frechet.bootstrap_floor(tensors[f"{against}.features"], **draws)
    return tensors, {
        **({} if against == "held_out" else {"against": against}),
        "dataset": {"name": splits[against].name, "sha256": splits[against].sha256},
        "floor": {"num_samples": draws["num_samples"], **_summary(floor)},
        "real_distance": None if single else frechet.moments_distance(moments["training"], moments["held_out"]),
    }


def _measure(
    splits: dict[str, ImageReader], extractor: FeatureNetwork, *, protocol: dict[str, Any], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Moments]]:
    """Tensors of the file, and the moments of each split."""
    tensors: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}
    for split, data in splits.items():
        values, predicted = _features(data, extractor, protocol, batch_size)
        moments[split] = Moments.of(values)
        tensors[f"{split}.features"] = values
        tensors[f"{split}.predicted"] = predicted
        tensors[f"{split}.labels"] = data.labels
        tensors[f"{split}.mean"] = moments[split].mean
        tensors[f"{split}.covariance"] = moments[split].covariance
    return tensors, moments


def _features(
    data: ImageReader, extractor: FeatureNetwork, protocol: dict[str, Any], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features (N, d) and predicted classes (N,) of real images, quantised and resized like samples."""
    batches = torch.arange(len(data)).split(batch_size)
    parts = [
        extract(extractor, data.batch(indices), protocol["quantise"], protocol["resize"])
        for indices in reporting.progress(batches, total=len(batches), unit="batches")
    ]
    return torch.cat([values for values, _ in parts]), torch.cat([predicted for _, predicted in parts])


def _summary(floor: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (divisor num - 1; null for a single value) and number of the floor's draws."""
    std = stdev(floor) if len(floor) > 1 else None
    return {"mean": fmean(floor), "std": std, "num": len(floor)}


if __name__ == "__main__":
    job.main(run, Reference)
