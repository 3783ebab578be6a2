"""Stage reference: features and moments of real data, and the floor that finite samples leave."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd.artifacts import dataset as datasets
from dmd.artifacts import record
from dmd.artifacts import tensors as tensor_files
from dmd.metrics import frechet
from dmd.metrics.features import FeatureNetwork, extract
from dmd.metrics.moments import Moments
from dmd.stages import feature_files, stage

BATCH_SIZE = 256


def run(
    *,
    output: Path,
    network: Path | None = None,
    dataset: dict[str, Any],
    features: dict[str, Any],
    protocol: dict[str, Any],
    floor_draws: int,
    seed: int,
    num_samples: int,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes features, labels, predicted classes, mean and covariance of both splits of a dataset.

    Args:
        output: the reference file. Its metadata: features, protocol, num_classes, modes, dataset, floor, and
            real_distance (training to held-out images: what an exact copier of the training images gets).
        network: weights of the feature network, where its kind has any; the spec's `features.sha256` pins
            them.
        protocol: {"quantise": levels or null, "resize": null}.
        floor_draws, seed, num_samples: see `frechet.floor`.

    Raises:
        ValueError: the weights are not the pinned file, or the protocol asks for something unknown.
    """
    spec = {
        "dataset": dataset,
        "features": features,
        "protocol": protocol,
        "floor_draws": floor_draws,
        "seed": seed,
        "num_samples": num_samples,
        "device": device,
        "threads": threads,
    }
    if protocol["resize"] is not None:
        raise ValueError(f"protocol.resize is {protocol['resize']!r}; only null (none) is known")
    stage.set_threads(threads)
    with record.exclusive(output):
        modes = dataset["means"] if dataset["kind"] == "gaussian-mixture" else None
        extractor = feature_files.load(network, features, modes=modes).to(stage.choose_device(device))
        inputs = record.check_inputs(network=network)
        splits = {split: datasets.load(dataset, split) for split in datasets.SPLITS}
        found, moments = _measure(splits, extractor, protocol["quantise"])
        floor = frechet.floor(found["held_out.features"], num_samples=num_samples, num_splits=floor_draws, seed=seed)
        facts = {
            "features": {"name": extractor.name, "sha256": features.get("sha256")},
            "protocol": protocol,
            "num_classes": extractor.num_classes,
            "modes": modes,
            "dataset": {"name": dataset["kind"], "sha256": splits["held_out"].sha256},
            "floor": {"num_samples": num_samples, **_summary(floor)},
            "real_distance": frechet.moments_distance(moments["training"], moments["held_out"]),
        }
        stage.log(f"floor of {extractor.name} at {num_samples} samples: {facts['floor']}")
        with record.publish(output, stage="reference", inputs=inputs) as temporary:
            tensor_files.write(temporary, found, {**record.provenance("reference", spec, inputs), **facts})


def _measure(
    splits: dict[str, datasets.Dataset], extractor: FeatureNetwork, levels: int | None
) -> tuple[dict[str, Tensor], dict[str, Moments]]:
    """The file's tensors, and the moments of each split."""
    found: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}
    for split, data in splits.items():
        values, predicted = _features(data, extractor, levels)
        moments[split] = Moments.of(values)
        found[f"{split}.features"] = values
        found[f"{split}.predicted"] = predicted
        found[f"{split}.labels"] = data.labels
        found[f"{split}.mean"] = moments[split].mean
        found[f"{split}.covariance"] = moments[split].covariance
    return found, moments


def _features(data: datasets.Dataset, extractor: FeatureNetwork, levels: int | None) -> tuple[Tensor, Tensor]:
    """Features (N, d) and predicted classes (N,) of real images, quantised as the samples will be."""
    batches = torch.arange(len(data)).split(BATCH_SIZE)
    parts = [
        extract(extractor, data.batch(indices), levels)
        for indices in stage.progress(batches, total=len(batches), unit="batches")
    ]
    return torch.cat([values for values, _ in parts]), torch.cat([predicted for _, predicted in parts])


def _summary(floor: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (divisor num - 1; null of one) and number of the floor's splits."""
    std = statistics.stdev(floor) if len(floor) > 1 else None
    return {"mean": statistics.fmean(floor), "std": std, "num": len(floor)}


if __name__ == "__main__":
    stage.main(run)
