"""Stage train_text: a CLIP trained on images and captions; its network of texts becomes a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dmd.config.pipeline_sections import ImageText as Section
from dmd.data.captions import FIELDS
from dmd.data.image_shards import ImageReader
from dmd.data.shared_verification import verify_once
from dmd.jobs import job, processes, torch_setup
from dmd.methods.base import Facts
from dmd.models import vocabulary
from dmd.models.image_text import ImageText
from dmd.provenance import record, tensor_files
from dmd.train import new_network
from dmd.train.captioned_images import AugmentedStream, CaptionedStream, check_captions


def run(
    *,
    images: Path,
    output: Path,
    image_text: Path,
    table: Path,
    section: Section,
    cadence: dict[str, Any] | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Trains the CLIP by method contrastive and writes its moving average.

    Args:
        images: images/manifest.parquet with captions; the training images are used.
        output: pipeline/text/text_encoder.safetensors, its network of texts with the tokenizer, in the form of
            teacher/text_encoder.safetensors; checkpoints/ beside it is temporary.
        image_text: pipeline/text/image_text.safetensors, the whole CLIP.
        table: pipeline/text/log.parquet, one row per `log_every` updates.
        section: `pipeline.text`.
        cadence: keys of `training` that do not change the weights.

    Raises:
        ValueError: images without captions or of other than 3 channels, a damaged input, or a loss that is not finite.
        Stopped: a signal was received; a checkpoint was written after the update during which it came.
    """
    torch_setup.set_threads(threads)
    spec = {**section.spec(), "training": section.training.weight_spec(), "device": device, "threads": threads}
    training = section.training.with_cadence(cadence)
    target = torch_setup.choose_device(device)
    with processes.lock(output), processes.group(training.processes, target):
        inputs = record.check_inputs(images=images)
        data = ImageReader(images, "training", verify=verify_once("images"))
        splits = tuple(FIELDS) if section.captions == "all" else ("training",)
        texts = check_captions(data, splits, images)
        facts = {"image_text": _network(section, data, texts, images)}
        provenance = record.provenance("train_text", spec, inputs)
        encoder = ImageText(**facts["image_text"])
        stream = CaptionedStream(
            AugmentedStream(data, section.augmentation), splits, lambda texts: {"tokens": encoder.tokens(texts)}
        )
        loop = new_network.loop(
            training,
            lambda: ImageText(**facts["image_text"]),
            Facts(data.shape, 0, data.sigma_data),
            {"images": stream},
            device=target,
            stage="train_text",
            section="pipeline.text.training",
            provenance=provenance,
            folder=output.parent,
        )

        def artifacts(weights: dict[str, Tensor]) -> dict[Path, new_network.Artifact]:
            averaged = tensor_files.part("ema.", weights)
            return {
                image_text: (averaged, {"kind": "image-text", **facts}),
                output: _encoder(averaged, facts["image_text"]),
            }

        new_network.train(loop, table, artifacts, provenance, inputs)


def _network(section: Section, data: ImageReader, texts: list[str], path: Path) -> dict[str, Any]:
    """Arguments of the `ImageText`: sizes, and a tokenizer made from the texts."""
    channels, _, side = data.shape
    if channels != 3 or side % section.image.patch_size:
        patch = section.image.patch_size
        raise ValueError(
            f"{path} has images {list(data.shape)}; a CLIP needs 3 channels, and patches of {patch} pixels"
        )
    tokenizer = vocabulary.train(texts, merges=section.vocabulary, length=section.length)
    end = vocabulary.size(tokenizer) - 1
    text = _tower(section.text) | {"vocab_size": end + 1, "max_position_embeddings": section.length}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, "projection_dim": section.embedding}
    vision = _tower(section.image) | {"image_size": side, "patch_size": section.image.patch_size}
    vision |= {"projection_dim": section.embedding}
    config = {"text_config": text, "vision_config": vision, "projection_dim": section.embedding}
    return {"config": config, "tokenizer": tokenizer}


def _tower(section: Any) -> dict[str, Any]:
    """Arguments that both networks of CLIP have; the inner width of a block is four times the outer one."""
    return {
        "hidden_size": section.width,
        "intermediate_size": 4 * section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "hidden_act": "quick_gelu",
    }


def _encoder(weights: dict[str, Tensor], network: dict[str, Any]) -> new_network.Artifact:
    """The network of texts as `loading.load_text` reads it."""
    config = network["config"]["text_config"]
    state_of = {f"encoder.{name}": value for name, value in tensor_files.part("clip.text_model.", weights).items()}
    sizes = {"length": config["max_position_embeddings"], "width": config["hidden_size"]}
    facts = {"text_encoder": {"config": config, "tokenizer": network["tokenizer"]}, "text": sizes}
    return state_of, {"kind": "text-encoder", **facts}


if __name__ == "__main__":
    job.main(run)
