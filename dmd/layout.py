"""Where artifacts lie below the folder of results: {experiment}/{file}, and tables/{name}."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePath

METRICS = ("fid", "kid", "prdc", "classes", "memorisation")
FILES = {  # rule -> its (first) artifact
    "teacher": "teacher/denoiser.safetensors",
    "text_encoder": "teacher/text_encoder.safetensors",
    "autoencoder": "teacher/autoencoder.safetensors",
    "tiny_autoencoder": "teacher/tiny_autoencoder.safetensors",
    "reference": "reference/reference.safetensors",
    "prompts": "prompts/prompts.parquet",
    "captions": "captions/captions.parquet",
    "pairs": "pairs/blocks/{first:05d}-{last:05d}.parquet",
    "pairs_manifest": "pairs/manifest.parquet",
    "distill": "distill/generator.safetensors",
    "sample": "samples/blocks/{first:05d}-{last:05d}.parquet",
    "samples_manifest": "samples/manifest.parquet",
    "features": "features/{first:05d}-{last:05d}.safetensors",
    "evaluate": "fid.json",
    "inception_score": "inception_score.json",
    "clip": "clip.json",
    "latency": "latency.json",
    "pictures": "pictures/grid.png",
    "sheet": "pictures/samples.png",
    "export": "export/generator.onnx",
    "pipeline": "export/pipeline/model_index.json",
    "lora": "export/pytorch_lora_weights.safetensors",
}
PIPELINE = (  # files of export/pipeline/ besides its first
    "README.md",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
BESIDE = {  # rule -> what else it makes, tars apart
    "distill": ("distill/log.parquet",),
    "pictures": ("pictures/training.png",),
    "evaluate": tuple(f"{metric}.json" for metric in METRICS),
    "pipeline": tuple(f"export/pipeline/{name}" for name in PIPELINE),
}
TARS = {"pairs": "pairs/{shard:05d}.tar", "sample": "samples/{shard:05d}.tar"}
TABLES = "tables"  # no name of an experiment
TABLE_KINDS = frozenset({".md", ".csv", ".png"})

_NAMES = [*FILES.values(), *(name for names in BESIDE.values() for name in names), *TARS.values()]
_PATTERNS = [re.sub(r"\{.*?\}", "[0-9]" * 5, name) for name in _NAMES]


def is_artifact(path: PurePath) -> bool:
    """Whether the workflow makes a file of this path, relative to the folder of results."""
    place, name = path.parts[0], PurePath(*path.parts[1:])
    if place == TABLES:
        return len(name.parts) == 1 and name.suffix in TABLE_KINDS
    return any(fnmatchcase(name.as_posix(), pattern) for pattern in _PATTERNS)
