"""Stage train_denoiser: a UNet2DConditionModel trained on latents and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dmd import torchvision_operators
from dmd.config.pipeline_sections import Augmentation, LatentDenoiser
from dmd.data.image_shards import ImageReader
from dmd.data.shared_verification import verify_once
from dmd.importers.pipeline_files import PREDICTIONS
from dmd.jobs import job, processes, torch_setup
from dmd.methods.base import Facts
from dmd.models import loading
from dmd.models.text_encoder import Text
from dmd.provenance import record
from dmd.train import new_network
from dmd.train.captioned_images import AugmentedStream, CaptionedStream, check_captions

SCHEDULER: dict[str, Any] = {  # noise levels of Stable Diffusion, and its scheduler's other settings
    **{"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
    **{"beta_schedule": "scaled_linear", "skip_prk_steps": True},
    **{"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading", "clip_sample": False},
}


def run(
    *,
    latents: Path,
    text_encoder: Path,
    autoencoder: Path,
    output: Path,
    table: Path,
    section: LatentDenoiser,
    cadence: dict[str, Any] | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Trains by method denoising and writes the moving average.

    Args:
        latents: pipeline/latents/manifest.parquet, with captions; those of split training are used.
        text_encoder: pipeline/text/text_encoder.safetensors; its weights do not change.
        autoencoder: pipeline/autoencoder/autoencoder.safetensors, for the size of the images.
        output: pipeline/denoiser/denoiser.safetensors, in the form of teacher/denoiser.safetensors; checkpoints/ beside
            it is temporary.
        table: pipeline/denoiser/log.parquet, one row per `log_every` updates.
        section: `pipeline.denoiser`.
        cadence: keys of `training` that do not change the weights.

    Raises:
        ValueError: a damaged input, latents of a size that the network cannot halve, or a loss that is not finite.
        Stopped: a signal was received; a checkpoint was written after the update during which it came.
    """
    torch_setup.set_threads(threads)
    spec = {**section.spec(), "training": section.training.weight_spec(), "device": device, "threads": threads}
    training = section.training.with_cadence(cadence)
    target = torch_setup.choose_device(device)
    with processes.lock(output), processes.group(training.processes, target):
        inputs = record.check_inputs(latents=latents, text_encoder=text_encoder, autoencoder=autoencoder)
        data = ImageReader(latents, "training", verify=verify_once("latents"))
        check_captions(data, ("training",), latents)
        text, codec = loading.load_text(text_encoder), loading.load_codec(autoencoder)
        facts, levels = _facts(section, data, text, codec.scale, latents)
        empty = text.encode([""]).states[0]
        provenance = record.provenance("train_denoiser", spec, inputs)
        stream = CaptionedStream(
            AugmentedStream(data, Augmentation()), ("training",), lambda texts: {"label": text.encode(texts).states}
        )
        loop = new_network.loop(
            training,
            lambda: loading.new_denoiser(facts["network"], sigma_data=1.0, preconditioning=levels),
            Facts(data.shape, 0, data.sigma_data, text=True, empty=empty),
            {"images": stream},
            device=target,
            stage="train_denoiser",
            section="pipeline.denoiser.training",
            provenance=provenance,
            folder=output.parent,
        )

        def artifacts(weights: dict[str, Tensor]) -> dict[Path, new_network.Artifact]:
            averaged = {name: value for name, value in weights.items() if name.startswith("ema.")}
            return {output: ({**averaged, "text.empty": empty}, {"kind": "stable-diffusion", **facts})}

        new_network.train(loop, table, artifacts, provenance, inputs)


def _facts(
    section: LatentDenoiser, data: ImageReader, text: Text, scale: int, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a teacher of kind stable-diffusion, and among them its preconditioning."""
    channels, height, width = data.shape
    halved = 2 ** (len(section.widths) - 1)
    if height != width or height % halved:
        raise ValueError(
            f"{path} has latents {list(data.shape)}; the network needs squares whose sides are multiples of {halved}, "
            f"since pipeline.denoiser.widths has {len(section.widths)} levels"
        )
    torchvision_operators.ensure()
    from diffusers import PNDMScheduler

    squares = PNDMScheduler.from_config(SCHEDULER).alphas_cumprod.double().tolist()
    levels = {"kind": "discrete", "alphas_cumprod": squares, "prediction": section.prediction}
    saved = next(name for name, prediction in PREDICTIONS.items() if prediction == section.prediction)
    config = {
        "sample_size": height,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if reads else "DownBlock2D" for reads in section.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if reads else "UpBlock2D" for reads in section.attention[::-1]],
        "block_out_channels": [*section.widths],
        "layers_per_block": section.layers,
        "norm_num_groups": section.groups,
        "attention_head_dim": [width // section.head_width for width in section.widths],  # diffusers: number of heads
        "cross_attention_dim": text.width,
    }
    facts = {
        "network": {"kind": "unet2d-condition", "config": config},
        "preconditioning": levels,
        "scheduler": {**SCHEDULER, "prediction_type": saved},
        "sigma_data": 1.0,
        "shape": [*data.shape],
        "image_shape": [3, height * scale, width * scale],
        "num_classes": 0,
        "text": {"length": text.length, "width": text.width},
        "sigma_min": float(((1 - squares[0]) / squares[0]) ** 0.5),
        "sigma_max": float(((1 - squares[-1]) / squares[-1]) ** 0.5),
        "dataset_sha256": data.sha256,
    }
    return facts, levels


if __name__ == "__main__":
    job.main(run)
