"""The files of a tiny random Stable Diffusion, imported, and a file of prompts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dmd.provenance import tensor_files
from dmd.stages import autoencoder, prompts, teacher, text_encoder
from tests.stable_diffusion_files import make_stable_diffusion

PROMPTS = ["a photo of a cat", "a red house", "a dog in the snow", "a photo of a dog", "red snow in the house"]


def import_all(folder: Path, **numbers: object) -> Path:
    """Writes `source` (the pipeline) and `teacher` (its three files) into `folder`; returns the latter."""
    source = make_stable_diffusion(folder / "source", **numbers)
    out = folder / "teacher"
    teacher.run(output=out / "denoiser.safetensors", table=out / "log.parquet", kind="stable-diffusion", source=source)
    text_encoder.run(output=out / "text_encoder.safetensors", source=source)
    autoencoder.run(output=out / "autoencoder.safetensors", source=source, kind="stable-diffusion")
    return out


def import_with_generator(folder: Path, **numbers: object) -> dict[str, Path]:
    """The files of `import_all` by name, and a one-step generator whose weights are near the teacher's."""
    out = import_all(folder, **numbers)
    found = {name: out / f"{name}.safetensors" for name in ("text_encoder", "autoencoder", "generator")}
    found["teacher"] = out / "denoiser.safetensors"
    weights, facts = tensor_files.load(found["teacher"])
    torch.manual_seed(1)
    weights = {name: value + 0.02 * torch.randn_like(value) for name, value in weights.items() if name[:4] == "ema."}
    tensor_files.write(
        found["generator"],
        weights,
        facts | {"kind": "generator", "sigma": facts["sigma_max"], "calls": {"sigmas": [facts["sigma_max"]]}},
    )
    return found


def write_prompts(folder: Path, texts: list[str]) -> Path:
    """The file that stage prompts makes of `texts`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "texts.parquet"
    pq.write_table(pa.table({"prompt": texts}), table)
    source = {"kind": "file", "column": "prompt", "sha256": None}
    prompts.run(files=[table], output=folder / "prompts.parquet", source=source)
    return folder / "prompts.parquet"
