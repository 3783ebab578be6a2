"""Small references and blocks of samples that the tests of the scoring stages share."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmd.data import manifest, shards
from dmd.provenance import files, record
from dmd.stages import features, reference
from tests.image_shards import image_shards

MIXTURE: dict[str, Any] = {
    "kind": "gaussian-mixture",
    "means": [[-2.0, 0.0], [2.0, 0.0]],
    "stds": [0.5, 0.5],
    "weights": [0.5, 0.5],
    "num_training": 300,
    "num_held_out": 250,
    "seed": 0,
}
POINTS: dict[str, Any] = {"features": {"kind": "coordinates"}, "protocol": {"quantise": None, "resize": None}}


def make_reference(path: Path, **changes: Any) -> Path:
    """A reference; of 200 samples of the mixture unless told otherwise. `dataset` is read from shards of it."""
    spec = {"dataset": MIXTURE, **POINTS, "floor_draws": 5, "seed": 0, "num_samples": 200} | changes
    if (dataset := spec.pop("dataset")) is not None:
        spec["images"] = image_shards(path.parent, dataset)
    reference.run(output=path, **spec)
    return path


def draw_points(num: int, *, seed: int) -> np.ndarray:
    """Fresh points (num, 2, 1, 1) of the mixture."""
    generator = np.random.default_rng(seed)
    means = np.array(MIXTURE["means"])[generator.integers(0, 2, num)]
    return (means + 0.5 * generator.standard_normal((num, 2)))[:, :, None, None].astype(np.float32)


def make_block(
    path: Path, images: np.ndarray, labels: np.ndarray, *, first: int, num_samples: int, shard_size: int = 50
) -> Path:
    """Shards of images (N, C, H, W), the first of which has the global index `first`, and their block table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(0, len(images), shard_size):
        tar = path.parent.parent / f"{(first + start) // shard_size:05d}.tar"
        indices = range(start, min(start + shard_size, len(images)))
        items = [(first + i, {"image": images[i], "label": np.array(labels[i], np.int64)}) for i in indices]
        shards.write(tar, items, {})
        with shards.Shard(tar) as shard:
            places = [place for _, place in shard.index()]
        facts = {"shard": f"../{tar.name}", "size": tar.stat().st_size, "sha256": files.sha256(tar)}
        for i, place in zip(indices, places, strict=True):
            row = {"key": f"{first + i:08d}", "index": first + i, "label": int(labels[i]), "seed": 100 + first + i}
            rows.append({**facts, **row, "offset": place.offset, "length": place.length})
    spec = {"first_seed": 100, "num_samples": num_samples, "labels": "random"}
    metadata = {**record.provenance("sample", spec, {}), "facts": {"network_calls": 35}}
    with record.publish(path, stage="sample", inputs={}) as temporary:
        manifest.write(temporary, pa.Table.from_pylist(rows, schema=manifest.SCHEMA), metadata)
    return path


def make_features(
    folder: Path, real: Path, points: np.ndarray, *, first: int, num_samples: int = 200, labelled: bool = True
) -> Path:
    """Features of points (N, 2, 1, 1), each of which asked for the mode it lies at, or for none."""
    labels = (points[:, 0, 0, 0] > 0).astype(np.int64) if labelled else np.full(len(points), -1)
    block = folder / "samples" / "blocks" / f"{first:05d}.parquet"
    make_block(block, points, labels, first=first, num_samples=num_samples)
    output = folder / "features" / f"{first:05d}.safetensors"
    features.run(block=block, reference=real, output=output, batch_size=64, **POINTS)
    return output
