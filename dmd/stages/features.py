"""Stage features: what the feature network sees in one block of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmd.artifacts import manifest, record, shards
from dmd.artifacts import tensors as tensor_files
from dmd.metrics.features import FeatureNetwork, extract
from dmd.metrics.moments import Moments
from dmd.stages import feature_files, stage


def run(
    *,
    block: Path,
    reference: Path,
    output: Path,
    network: Path | None = None,
    features: dict[str, Any],
    protocol: dict[str, Any],
    batch_size: int,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Writes features, predicted classes, labels and moment sums (count, sum, outer) of a block of samples.

    Args:
        block: table of a block of sample shards, all of one repetition; each shard is checked against its
            digest.
        reference: the file the samples will be compared with; features and protocol must be the same.
        network: weights of the feature network, where its kind has any.

    Raises:
        ValueError: a damaged input, a reference of other features or protocol, a block of several
            repetitions.
    """
    stage.set_threads(threads)
    spec = {
        "features": features,
        "protocol": protocol,
        "batch_size": batch_size,
        "threads": threads,
        "device": device,
    }
    with record.exclusive(output):
        inputs = record.check_inputs(block=block, reference=reference)
        real = tensor_files.load_metadata(reference)
        extractor, identity = feature_files.load(network, features, modes=real["modes"])
        inputs |= record.check_inputs(network=network)
        extractor.to(stage.choose_device(device))
        if real["features"] != identity or real["protocol"] != protocol:
            raise ValueError(
                f"{reference} holds {real['features']} under {real['protocol']}, but the spec asks for "
                f"{identity} under {protocol}"
            )
        samples = manifest.read(block)
        found = _extract(samples, extractor, protocol, batch_size)
        facts = {"features": identity, "protocol": protocol, **_origin(samples)}
        with record.publish(output, stage="features", inputs=inputs) as temporary:
            tensor_files.write(temporary, found, {**record.provenance("features", spec, inputs), **facts})


def _extract(
    samples: manifest.Manifest, extractor: FeatureNetwork, protocol: dict[str, Any], batch_size: int
) -> dict[str, Tensor]:
    """The file's tensors."""
    num_batches = -(-len(samples.table) // batch_size)
    values, predicted, labels = [], [], []
    batches = stage.progress(_batches(samples, batch_size), total=num_batches, unit="batches")
    for image, label in batches:
        part, classes = extract(extractor, image, protocol["quantise"], protocol["resize"])
        values.append(part)
        predicted.append(classes)
        labels.append(label)
    found = torch.cat(values)
    moments = Moments.of(found)
    return {
        "features": found,
        "predicted": torch.cat(predicted),
        "label": torch.cat(labels),
        "count": torch.tensor(moments.count),
        "sum": moments.sum,
        "outer": moments.outer,
    }


def _batches(samples: manifest.Manifest, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) and labels (B,) of the block in order; batches do not end where shards do."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for part in samples.shards:
        with shards.Shard(part.path, size=part.size, sha256=part.sha256) as shard:
            for _, item in shard.items():
                images.append(item["image"].copy())
                labels.append(int(item["label"]))
                if len(images) == batch_size:
                    yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
                    images, labels = [], []
    if images:
        yield torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _origin(samples: manifest.Manifest) -> dict[str, Any]:
    """Which repetition the block belongs to and how its samples were made."""
    spec, rows = samples.metadata["spec"], samples.table["index"].to_numpy()
    num_samples = spec["num_samples"]
    first, last = int(rows.min()), int(rows.max())
    repetition = first // num_samples
    if last // num_samples != repetition:
        raise ValueError(
            f"{samples.path} holds samples {first} to {last}: repetitions of {num_samples} meet in one block"
        )
    return {
        "repetition": repetition,
        "first_index": first,
        "count": len(rows),
        "num_samples": num_samples,
        "first_seed": spec["first_seed"] + repetition * num_samples,
        "labels": spec["labels"],
        "network_calls": samples.metadata["facts"]["network_calls"],
    }


if __name__ == "__main__":
    stage.main(run)
