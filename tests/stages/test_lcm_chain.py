"""LCM and LCM-LoRA of a tiny Stable Diffusion, from its pairs: file, samples, export for the stock pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch

import dmd
from dmd import torchvision_operators
from dmd.models import loading
from dmd.models.loading import load_codec
from dmd.provenance import tensor_files
from dmd.sampling.sampler import Sampler
from dmd.stages import export_pipeline, pairs
from dmd.stages import manifest as manifest_stage
from tests.text_files import PROMPTS, import_all, write_prompts
from tests.trainings import NAMES, distil

SEEDS = range(5, 7)
PAIRS = {"solver": {"name": "ddim", "steps": 2}, "batch_size": 4, "labels": "random", "guidance": 3.0}
METHOD = {"name": "lcm", "data": "pairs", "guidance": {"lowest": 2.0, "highest": 10.0}, "batch_size": 4, "calls": 2}
METHOD |= {"phases": [{"updates": 2}]}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Teacher, prompts and pairs; not to be changed."""
    folder = tmp_path_factory.mktemp("lcm")
    teacher, prompts = import_all(folder, resolution=8), write_prompts(folder, PROMPTS)
    texts = {"prompts": prompts, "text_encoder": teacher / "text_encoder.safetensors"}
    block = folder / "pairs" / "blocks" / "00000-00000.parquet"
    places = {"first": 0, "last": 0, "shard_size": 4, "first_seed": 2**31}
    pairs.run(teacher=teacher / "denoiser.safetensors", output=block, **texts, **places, **PAIRS)
    manifest = folder / "pairs" / "manifest.parquet"
    manifest_stage.run(blocks=[block], output=manifest, num=4, shard_size=4)
    names = ("denoiser", "autoencoder")
    return {**texts, "manifest": manifest, **{name: teacher / f"{name}.safetensors" for name in names}}


def distilled(folder: Path, files: dict[str, Path], **keys: Any) -> Path:
    monitor = {"num_images": 4, "seeds": 4, "decoder": "none", "features": None}
    section = {"optimisers": {"student": {"learning_rate": 0.01}}, "schedule": {"warmup": 0}, "monitor": monitor}
    given = {"teacher": files["denoiser"], "manifest": files["manifest"]}
    return distil(folder, section | {"method": METHOD} | keys, **given) / NAMES[0]


def test_stock_pipeline_draws_the_samples_of_any_guidance_of_the_range(files, tmp_path):
    torchvision_operators.ensure()
    from diffusers import DiffusionPipeline

    student = distilled(tmp_path, files)
    facts = tensor_files.load_metadata(student)
    assert facts["guidance_range"] == [2.0, 10.0] and facts["network"]["guidance_input"]
    levels = loading.load_denoiser(student, calls=1)[1]["calls"]["sigmas"]
    assert levels == facts["calls"]["sigmas"][:1] and set(facts["fewer_calls"]) == {"1"}
    parts = {name: files[name] for name in ("text_encoder", "autoencoder", "prompts")}
    output = tmp_path / "pipeline" / "model_index.json"
    export_pipeline.run(generator=student, **parts, output=output, guidance=4.5, experiment="words")
    stock: Any = DiffusionPipeline.from_pretrained(output.parent, local_files_only=True)
    assert type(stock).__name__ == "LatentConsistencyModelPipeline" and type(stock.scheduler).__name__ == "LCMScheduler"
    stock.set_progress_bar_config(disable=True)
    load = {"text_encoder": files["text_encoder"], "device": "cpu"}
    codec, drawn = load_codec(files["autoencoder"]), []
    for guidance in (4.5, 9.0):
        with torch.no_grad():
            latents = torch.cat([dmd.load(student, **load, guidance=guidance)(PROMPTS[0], seed=seed) for seed in SEEDS])
            ours = (codec.decode(latents) / 2 + 0.5).clamp(0, 1)
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        given = {"num_inference_steps": 2, "guidance_scale": guidance, "generator": generators, "output_type": "pt"}
        torch.testing.assert_close(stock([PROMPTS[0]] * 2, **given).images, ours, atol=1e-4, rtol=0)
        drawn.append(ours)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    card = (output.parent / "README.md").read_text()
    assert "num_inference_steps=2, guidance_scale=4.5)" in card and "with guidance as an input" in card
    assert "trained from 2 to 10." in card and "the default is 8.5." in card


def test_adapter_learns_the_mean_over_the_range_and_is_sampled_without_guidance(files, tmp_path):
    keys = {"method": {**METHOD, "embedded": False, "target_decay": 0.0}, "adapter": {"rank": 2}}
    student = distilled(tmp_path, files, **keys)
    facts = tensor_files.load_metadata(student)
    assert (
        "guidance_range" not in facts and facts["network"] == tensor_files.load_metadata(files["denoiser"])["network"]
    )
    assert dmd.load(student, text_encoder=files["text_encoder"], device="cpu")(PROMPTS[0]).isfinite().all()
    with pytest.raises(ValueError, match="is a student, which is sampled without guidance"):
        Sampler(student, solver=None, guidance=3.0)
