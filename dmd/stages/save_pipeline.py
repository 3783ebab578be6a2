"""Stage save_pipeline: a Stable Diffusion that was trained here, as a folder for diffusers, in half precision."""

from __future__ import annotations

from pathlib import Path

import torch

from dmd.jobs import job, reporting
from dmd.provenance import record, tensor_files
from dmd.report.model_folder import WEIGHTS, FolderWriter

LARGEST = float(torch.finfo(torch.float16).max)


def run(*, denoiser: Path, text_encoder: Path, autoencoder: Path, output: Path) -> None:
    """Writes the folder, which `StableDiffusionPipeline.from_pretrained` and teachers of kind stable-diffusion read.

    Args:
        denoiser: pipeline/denoiser/denoiser.safetensors.
        text_encoder: pipeline/text/text_encoder.safetensors.
        autoencoder: pipeline/autoencoder/autoencoder.safetensors.
        output: pipeline/folder/model_index.json; the other files are below its folder.

    Raises:
        ValueError: a damaged input, or weights beyond the range of float16.
    """
    with record.writing(output):
        inputs = record.check_inputs(denoiser=denoiser, text_encoder=text_encoder, autoencoder=autoencoder)
        tensors, facts = tensor_files.load(denoiser)
        for path in (denoiser, text_encoder, autoencoder):
            _check_range(path)
        writer = FolderWriter(output.parent, "save_pipeline", inputs, torch.float16)
        network = facts["network"]["config"]
        writer.write_json("unet/config.json", {"_class_name": "UNet2DConditionModel", **network})
        writer.write_weights(f"unet/{WEIGHTS}", tensor_files.part("ema.unet.", tensors))
        writer.write_json("scheduler/scheduler_config.json", facts["scheduler"])
        writer.write_text_encoder(text_encoder)
        writer.write_autoencoder(autoencoder)
        parts = {
            "scheduler": ("diffusers", facts["scheduler"]["_class_name"]),
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
        }
        empty = {name: (None, None) for name in ("safety_checker", "feature_extractor")}
        index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts, **empty}
        writer.write_json(output.name, index)
        size = sum(path.stat().st_size for path in output.parent.rglob("*.safetensors"))
        reporting.log(f"{output.parent}: {size / 1e6:.1f} MB of weights")


def _check_range(path: Path) -> None:
    """ValueError if a weight would become infinite in float16."""
    tensors, _ = tensor_files.load(path)
    for name, value in tensors.items():
        if value.is_floating_point() and float(value.abs().max()) > LARGEST:
            raise ValueError(f"{path}: {name} has weights beyond {LARGEST:g}, the largest number of float16")


if __name__ == "__main__":
    job.main(run)
