"""Datasets as shards, made once where they are not there."""

import hashlib
from pathlib import Path

from dmd.provenance.files import canonical_json
from dmd.stages import images


def image_shards(folder: Path, dataset: dict) -> Path:
    """The manifest of a dataset's images below `folder`."""
    name = hashlib.sha256(canonical_json(dataset).encode()).hexdigest()[:12]
    path = folder / f"images-{name}" / "manifest.parquet"
    if not path.exists():
        images.run(output=path, dataset=dataset, shard_size=500)
    return path
