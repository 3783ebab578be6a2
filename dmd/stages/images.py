"""Stage images: a dataset as shards with an index, for trainings and references."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from dmd.data import dataset as datasets
from dmd.data import image_folder, image_shards, manifest, shard_publishing
from dmd.jobs import job, reporting
from dmd.provenance import pinned, record

PART, PART_BYTES = 1024, 2**27  # images of a folder in memory at once, and their bytes


def run(*, output: Path, dataset: dict[str, Any], shard_size: int) -> None:
    """Writes images/{shard}.tar and the manifest that lists them, the training split first.

    The metadata of the manifest has `facts`: shape, num_classes, sigma_data (of the training split, or of all images if
    all are held out), dataset_sha256, splits (for each its first row and the row after its last), name (the kind of the
    dataset; of IDX files the name of their folder), and modes (the means of a Gaussian mixture, else null). Captions
    lie in the row of their image, see `dmd.data.captions`.

    Args:
        output: images/manifest.parquet; the shards are beside it.
        dataset: section `dataset` of the experiment.
        shard_size: images in one tar.

    Raises:
        ValueError: a dataset that cannot be used.
    """
    with record.writing(output):
        if dataset["kind"] == "images" and (line := image_folder.passed_over(Path(dataset["folder"]))):
            reporting.log(line)
        if dataset["kind"] == "idx":
            reporting.log(f"sha256 of the four files: {datasets.idx_splits(dataset)[1]}")
        if "file" in dataset:
            pinned.check(Path(dataset["file"]), dataset["sha256"], key="dataset.sha256", source="a font")
        provenance = record.provenance("images", {"dataset": dataset, "shard_size": shard_size}, {})
        names = ["held_out"] if dataset.get("num_held_out") == datasets.ALL else list(datasets.SPLITS)
        counts, spread = dict.fromkeys(names, 0), image_shards.Statistics()
        rows = itertools.chain(*(_read_split(dataset, split, counts, spread) for split in names))
        captions = datasets.captions_of(dataset, names)
        tables, tars = [], {}
        for number, items in enumerate(image_shards.in_shards(image_shards.items(rows, captions), shard_size)):
            path = output.parent / f"{number:05d}.tar"
            tars[str(path)], table = shard_publishing.publish(
                path, items, name=path.name, number=number, provenance=provenance, inputs={}
            )
            tables.append(table)
        num_classes, digest = datasets.describe(dataset)
        facts = {"shape": spread.shape, "num_classes": num_classes, "sigma_data": round(spread.std, 6)}
        facts |= {"dataset_sha256": digest, "splits": image_shards.split_rows(counts)}
        name = Path(dataset["folder"]).name if dataset["kind"] == "idx" else dataset["kind"]
        facts |= {"name": name, "modes": dataset.get("means")}
        with record.publish(output, stage="images", inputs={"shards": tars}) as temporary:
            manifest.write(temporary, pa.concat_tables(tables), {**provenance, "facts": facts})
        reporting.log(f"{sum(counts.values())} images {spread.shape}, {len(tables)} shards")


def _read_split(
    dataset: dict[str, Any], split: str, counts: dict[str, int], spread: image_shards.Statistics
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of a split in parts; adds to its count, and for the first split to `spread`."""
    size = dataset.get("channels", 3) * dataset.get("resolution", 1) ** 2
    for part, labels in datasets.parts(dataset, split, max(1, min(PART, PART_BYTES // size))):
        counts[split] += len(part)
        if split == next(iter(counts)):
            spread.add(part)
        yield part, labels


if __name__ == "__main__":
    job.main(run)
