"""Stage save_clip: a CLIP that was trained here, as a folder for transformers, in half precision."""

from __future__ import annotations

from pathlib import Path

import torch

from dmd.jobs import job
from dmd.models.image_text import MEAN, STD
from dmd.provenance import record, tensor_files
from dmd.report.model_folder import FolderWriter

BICUBIC = 3  # Pillow's number


def run(*, image_text: Path, output: Path) -> None:
    """Writes the folder, which `evaluate.clip` and transformers' CLIPModel read.

    Args:
        image_text: pipeline/text/image_text.safetensors.
        output: pipeline/clip/config.json; the other files are beside it.

    Raises:
        ValueError: a damaged input.
    """
    with record.writing(output):
        inputs = record.check_inputs(image_text=image_text)
        tensors, facts = tensor_files.load(image_text)
        network, writer = facts["image_text"], FolderWriter(output.parent, "save_clip", inputs, torch.float16)
        side = network["config"]["vision_config"]["image_size"]
        writer.write_weights("model.safetensors", tensor_files.part("clip.", tensors))
        writer.write_tokenizer("", network["tokenizer"])
        processor = {
            **{"do_resize": True, "size": {"shortest_edge": side}, "resample": BICUBIC},
            **{"do_center_crop": True, "crop_size": {"height": side, "width": side}},
            **{"do_normalize": True, "image_mean": [MEAN] * 3, "image_std": [STD] * 3},
        }
        writer.write_json("preprocessor_config.json", processor)
        writer.write_json(output.name, {"architectures": ["CLIPModel"], "model_type": "clip", **network["config"]})


if __name__ == "__main__":
    job.main(run)
