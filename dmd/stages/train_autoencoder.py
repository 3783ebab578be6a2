"""Stage train_autoencoder: an AutoencoderKL trained on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmd.config.pipeline_sections import TrainedAutoencoder
from dmd.data.image_shards import ImageReader
from dmd.data.shared_verification import verify_once
from dmd.jobs import job, processes, reporting, torch_setup
from dmd.methods.base import Facts
from dmd.models.autoencoder import Codec
from dmd.provenance import record, tensor_files
from dmd.train import new_network
from dmd.train.captioned_images import AugmentedStream

NUM_IMAGES, BATCH_SIZE = 4096, 16  # images whose latents are measured, at most; encoded at once


def run(
    *,
    images: Path,
    output: Path,
    table: Path,
    section: TrainedAutoencoder,
    cadence: dict[str, Any] | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Trains by method autoencoding and writes the moving average.

    Its scaling_factor is 1 over the standard deviation of the latents of training images (Rombach et al. 2022,
    appendix G), so that latents have about unit variance.

    Args:
        images: images/manifest.parquet; the training images are used.
        output: pipeline/autoencoder/autoencoder.safetensors, in the form of teacher/autoencoder.safetensors;
            checkpoints/ beside it is temporary.
        table: pipeline/autoencoder/log.parquet, one row per `log_every` updates.
        section: `pipeline.autoencoder`.
        cadence: keys of `training` that do not change the weights.

    Raises:
        ValueError: images of other than 3 channels or of an odd size, a damaged input, or a loss that is not finite.
        Stopped: a signal was received; a checkpoint was written after the update during which it came.
    """
    torch_setup.set_threads(threads)
    spec = {**section.spec(), "training": section.training.weight_spec(), "device": device, "threads": threads}
    training = section.training.with_cadence(cadence)
    target = torch_setup.choose_device(device)
    with processes.lock(output), processes.group(training.processes, target):
        inputs = record.check_inputs(images=images)
        data = ImageReader(images, "training", verify=verify_once("images"))
        config = _config(section, data, images)
        provenance = record.provenance("train_autoencoder", spec, inputs)
        loop = new_network.loop(
            training,
            lambda: Codec(kind="full", config=config),
            Facts(data.shape, 0, data.sigma_data),
            {"images": AugmentedStream(data, section.augmentation)},
            device=target,
            stage="train_autoencoder",
            section="pipeline.autoencoder.training",
            provenance=provenance,
            folder=output.parent,
        )

        def artifacts(weights: dict[str, torch.Tensor]) -> dict[Path, new_network.Artifact]:
            averaged = tensor_files.part("ema.", weights)
            return {output: (averaged, {"kind": "autoencoder", **_measured(averaged, config, data)})}

        new_network.train(loop, table, artifacts, provenance, inputs)


def _config(section: TrainedAutoencoder, data: ImageReader, path: Path) -> dict[str, Any]:
    """Arguments of AutoencoderKL."""
    channels, height, width = data.shape
    if channels != 3 or height % section.scale or width % section.scale:
        raise ValueError(
            f"{path} has images {list(data.shape)}; the autoencoder needs 3 channels, and sides in multiples of "
            f"{section.scale}, since pipeline.autoencoder.widths has {len(section.widths)} levels"
        )
    depth = len(section.widths)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * depth,
        "up_block_types": ["UpDecoderBlock2D"] * depth,
        "block_out_channels": [*section.widths],
        "layers_per_block": section.layers,
        "latent_channels": section.latent_channels,
        "norm_num_groups": section.groups,
        "mid_block_add_attention": section.attention,
        "sample_size": height,
        "scaling_factor": 1.0,
    }


@torch.no_grad()
def _measured(weights: dict[str, torch.Tensor], config: dict[str, Any], data: ImageReader) -> dict[str, Any]:
    """Facts of the file; logs the scale of the latents and the error of reconstructions."""
    codec = Codec(kind="full", config=config).eval()
    codec.load_state_dict(weights)
    latents, error, num = [], 0.0, min(NUM_IMAGES, len(data))
    for rows in torch.arange(num).split(BATCH_SIZE):
        image = data.batch(rows)
        latents.append(codec.encode(image))
        error += float((codec.decode(latents[-1]) - image).abs().double().mean()) * len(rows)
    spread = float(torch.cat(latents).double().std())
    reporting.log(
        f"latents have a standard deviation of {spread:.4f}, images come back with an error of {error / num:.4f}"
    )
    section = {"kind": "full", "config": {**config, "scaling_factor": 1 / spread}}
    facts = {"reconstruction_error": error / num, "latent_channels": codec.channels, "scale": codec.scale}
    return {"autoencoder": section, **facts}


if __name__ == "__main__":
    job.main(run)
