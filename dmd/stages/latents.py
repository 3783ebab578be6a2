"""Stage latents: latents of training images, as shards that are read like images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from dmd.config.pipeline_sections import Latents
from dmd.data import image_shards, manifest, shard_publishing
from dmd.data.captions import Captions
from dmd.data.image_shards import ImageReader
from dmd.jobs import job, reporting, torch_setup
from dmd.models import loading
from dmd.models.autoencoder import Codec
from dmd.provenance import record
from dmd.train import augmentation
from dmd.train.randomness import update_generator

BATCH_SIZE = 16  # images encoded at once


def run(
    *, images: Path, autoencoder: Path, output: Path, section: Latents, device: str = "cpu", threads: int = 1
) -> None:
    """Writes latents/{shard}.tar and the manifest that lists them, in the form of stage images.

    Image i of N gives rows i, N + i, 2 N + i, ...: first the latent of the image itself, then those of its changed
    views, all with its captions.

    Args:
        images: images/manifest.parquet; the training images are used.
        autoencoder: pipeline/autoencoder/autoencoder.safetensors.
        output: pipeline/latents/manifest.parquet; the shards are beside it.
        section: `pipeline.latents`.

    Raises:
        ValueError: a damaged input, or images that the autoencoder does not take.
    """
    torch_setup.set_threads(threads)
    with record.writing(output):
        inputs = record.check_inputs(images=images, autoencoder=autoencoder)
        spec = {**section.spec(), "device": device, "threads": threads}
        provenance = record.provenance("latents", spec, inputs)
        data = ImageReader(images, "training")
        codec = loading.load_codec(autoencoder).to(torch_setup.choose_device(device))
        total, statistics = section.views * len(data), image_shards.Statistics()
        rows = image_shards.items(_parts(data, codec, section, statistics), _captions(data, section.views))
        tables, tars = [], {}
        for number, items in enumerate(image_shards.in_shards(rows, section.shard_size)):
            path = output.parent / f"{number:05d}.tar"
            tars[str(path)], table = shard_publishing.publish(
                path, items, name=path.name, number=number, provenance=provenance, inputs=inputs
            )
            tables.append(table)
        facts = {"shape": statistics.shape, "num_classes": 0, "sigma_data": round(statistics.std, 6)}
        facts |= {"dataset_sha256": data.sha256, "splits": {"training": [0, total]}, "name": "latents", "modes": None}
        with record.publish(output, stage="latents", inputs={**inputs, "shards": tars}) as temporary:
            manifest.write(temporary, pa.concat_tables(tables), {**provenance, "facts": facts})


def _parts(
    data: ImageReader, codec: Codec, section: Latents, statistics: image_shards.Statistics
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents of all views in batches, with the label -1 of each; adds them to `statistics`."""
    status = reporting.Progress(total=section.views * len(data), unit="latents")
    device = next(codec.parameters()).device
    for view in range(section.views):
        values = augmentation.draw(len(data), update_generator("latents", section.seed, view))
        for rows in torch.arange(len(data)).split(BATCH_SIZE):
            image = data.batch(rows)
            image = augmentation.changed(image, section.augmentation, values[rows]) if view else image
            latent = codec.encode(image.to(device)).cpu()
            statistics.add(latent)
            status.add(len(rows))
            yield latent, torch.full((len(rows),), -1)


def _captions(data: ImageReader, views: int) -> Iterator[Captions]:
    """The captions of all rows, in order."""
    for _ in range(views):
        for rows in torch.arange(len(data)).split(BATCH_SIZE):
            yield from data.captions(rows)


if __name__ == "__main__":
    job.main(run)
