"""Stage export_pipeline: a one-step student as a folder for diffusers, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dmd.data import manifest as manifests
from dmd.data.prompts import Prompts
from dmd.jobs import job
from dmd.provenance import record, tensor_files
from dmd.report import card

FIRST_TIMESTEP = 999  # timestep at which DDIM's single step begins with "trailing" spacing; it ends at x0
PARTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
SCHEDULER_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def run(
    *,
    generator: Path,
    text_encoder: Path,
    autoencoder: Path,
    prompts: Path,
    manifest: Path | None = None,
    states: Path | None = None,
    scores: list[Path] | None = None,
    output: Path,
    weights: str = "ema",
    experiment: str,
) -> None:
    """Writes the folder; `DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=1, guidance_scale=0)`
    then draws what stage sample draws, from the same noise.

    Args:
        generator: distill/generator.safetensors, of a teacher of kind stable-diffusion.
        text_encoder, autoencoder: files of the teacher.
        prompts: prompts of the distillation, for the model card.
        manifest, states: pairs/manifest.parquet or states/manifest.parquet of the distillation, for the model card.
        scores: score files such as fid.json, for the model card.
        output: export/pipeline/model_index.json; `dmd.config.rule_table.PIPELINE` lists the other files, which are
            beside and below it.
        weights: "ema" or "raw".
        experiment: name of the experiment, for the model card.

    Raises:
        ValueError: a damaged input, or not a one-call student of such a teacher.
    """
    spec = {"weights": weights, "experiment": experiment}
    with record.writing(output):
        paths = {"generator": generator, "text_encoder": text_encoder, "autoencoder": autoencoder}
        inputs = record.check_inputs(**paths, manifest=manifest, states=states, prompts=prompts, scores=scores)
        writer = _Writer(output.parent, inputs)
        state, facts = _network(generator, weights)
        scheduler = _scheduler(facts, generator)
        config = {key: value for key, value in facts["network"]["config"].items() if key[:1] != "_"}
        writer.write_json("unet/config.json", {"_class_name": "UNet2DConditionModel", **config})
        writer.write_weights("unet/diffusion_pytorch_model.safetensors", state)
        writer.write_json("scheduler/scheduler_config.json", scheduler)
        _text(writer, text_encoder)
        _autoencoder(writer, autoencoder)
        provenance, data = record.provenance("export_pipeline", spec, inputs), _data(manifest, states, prompts)
        writer.write_text("README.md", card.card(provenance, facts, data, scores or []))
        index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **PARTS}
        writer.write_json(output.name, {**index, "safety_checker": [None, None], "feature_extractor": [None, None]})


class _Writer:
    """Writes the files of the folder atomically, each with its record."""

    def __init__(self, folder: Path, inputs: record.Inputs) -> None:
        self.folder, self.inputs = folder, inputs

    def write_text(self, name: str, text: str) -> None:
        with record.publish(self.folder / name, stage="export_pipeline", inputs=self.inputs) as temporary:
            temporary.write_text(text)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def write_weights(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        with record.publish(self.folder / name, stage="export_pipeline", inputs=self.inputs) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})


def _network(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of the network under their names in diffusers, and the facts of the student's file."""
    tensors, facts = tensor_files.load(path)
    if facts["kind"] != "generator" or facts["network"]["kind"] != "unet2d-condition" or "text" not in facts:
        raise ValueError(f"{path} is no generator of a teacher of kind stable-diffusion: a pipeline needs one")
    if not (state := _within(f"{weights}.unet.", tensors)):
        raise ValueError(f"{path} holds no {weights!r} weights")
    return state, facts


def _scheduler(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Configuration of DDIM, whose single step is the student's call."""
    config = facts.get("scheduler") or {}
    levels = len(facts["preconditioning"]["alphas_cumprod"])
    if len(facts["calls"]["sigmas"]) > 1:
        raise ValueError(
            f"{path} makes {len(facts['calls']['sigmas'])} calls: only a student of one call has a pipeline"
        )
    if levels != FIRST_TIMESTEP + 1 or abs(facts["sigma"] / facts["sigma_max"] - 1) > 1e-6:
        raise ValueError(
            f"{path} starts at sigma {facts['sigma']:.6g}, and its {levels} noise levels end at "
            f"{facts['sigma_max']:.6g}: a one-step pipeline must start at the highest of {FIRST_TIMESTEP + 1} levels"
        )
    own = {key: config[key] for key in SCHEDULER_KEYS if config.get(key) is not None}
    one_step = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "steps_offset": 1}
    return {"_class_name": "DDIMScheduler", **own, **one_step}


def _text(writer: _Writer, path: Path) -> None:
    tensors, facts = tensor_files.load(path)
    parts = facts["text_encoder"]
    # the names of published folders: transformers 5 also reads others, transformers 4 does not
    encoder = {f"text_model.{name}": value for name, value in _within("encoder.", tensors).items()}
    writer.write_json("text_encoder/config.json", {"architectures": ["CLIPTextModel"], **parts["config"]})
    writer.write_weights("text_encoder/model.safetensors", encoder)
    for name in TOKENIZER:
        writer.write_text(f"tokenizer/{name}", parts["tokenizer"].get(name, "{}"))


def _autoencoder(writer: _Writer, path: Path) -> None:
    tensors, facts = tensor_files.load(path)
    writer.write_json("vae/config.json", {"_class_name": "AutoencoderKL", **facts["autoencoder"]["config"]})
    writer.write_weights("vae/diffusion_pytorch_model.safetensors", _within("autoencoder.", tensors))


def _within(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _data(pairs: Path | None, states: Path | None, prompts: Path) -> dict[str, Any]:
    """Facts of the pairs or text states, their number, and the source of the prompts."""
    facts: dict[str, Any] = {}
    for path, count in ((pairs, "num_pairs"), (states, "num_states")):
        if path is not None:
            rows = manifests.read(path)
            facts |= {**rows.metadata["facts"], count: len(rows)}
    texts = Prompts(prompts)
    return {
        **facts,
        "num_prompts": len(texts),
        "prompts": texts.metadata.get("spec", {}).get("source", {}),
    }


if __name__ == "__main__":
    job.main(run)
