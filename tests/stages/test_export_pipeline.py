"""The exported folder is what stock diffusers opens, and draws what stage sample draws."""

from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.config.rule_table import PIPELINE
from dmd.data import manifest as manifests
from dmd.data import prompts as prompt_files
from dmd.models.loading import load_codec, load_text
from dmd.models.lora import merge_adapter
from dmd.provenance import files, tensor_files
from dmd.report import score_files
from dmd.sampling.sampler import Sampler
from dmd.stages import export_lora, export_pipeline
from tests.text_files import import_with_generator

PROMPTS = ["a red house in the snow", "a photo of a cat"]
SCORE = {"metric": "fd-inception", "value": 12.345, "std": 0.5, "num_samples": 8, "network_calls": 1}
FOUND = {"metric": "retrieval-clip-judge", "num_samples": 8, "network_calls": 1}
FOUND |= {"top1": {"value": 0.25, "std": None}, "top5": {"value": 0.5, "std": 0.125}}
SPEC = {
    "method": {"name": "dmd", "phases": [{"updates": 3}, {"updates": 4}], "guidance": 3.0},
    "optimisers": {"student": {"learning_rate": 1.0e-5}},
    "seed": 7,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def exported(request, tmp_path_factory) -> tuple[Path, Path]:
    """Folder of the artifacts, and the exported one."""
    places = import_with_generator(tmp_path_factory.mktemp("export"), prediction=request.param)
    folder = places["generator"].parent
    tensors, facts = tensor_files.load(places["generator"])
    tensor_files.write(places["generator"], tensors, facts | {"spec": SPEC})
    table = manifests.SCHEMA.empty_table()
    manifests.write(folder / "manifest.parquet", table, {"facts": {"network_calls": 51, "guidance": 3.0}})
    scores = [folder / "fid.json", folder / "retrieval.json"]
    generator = {"generator": {str(places["generator"]): files.sha256(places["generator"])}}
    for path, score in zip(scores, (SCORE, FOUND), strict=True):
        score_files.write(path, {**score, "stage": "evaluate"}, generator)
    output = folder / "export" / "pipeline" / "model_index.json"
    paths = {name: places[name] for name in ("generator", "text_encoder", "autoencoder")}
    paths |= {"manifest": folder / "manifest.parquet", "prompts": folder / "prompts.parquet"}
    source = {"kind": "laion", "threshold": 6.25, "files": [{"sha256": None}]}
    prompt_files.write(paths["prompts"], [pa.array(PROMPTS)], lambda: {"spec": {"source": source}})
    export_pipeline.run(**paths, scores=scores, output=output, experiment="words")
    return folder, output.parent


def test_folder_holds_just_the_files_that_the_layout_names(exported):
    files = {path.relative_to(exported[1]).as_posix() for path in exported[1].rglob("*") if path.is_file()}
    assert {name for name in files if not Path(name).name.startswith(".")} == {*PIPELINE, "model_index.json"}


def test_text_encoder_has_the_names_of_published_folders(exported):
    found = safetensors.torch.load_file(exported[1] / "text_encoder" / "model.safetensors")
    published = safetensors.torch.load_file(exported[0].parent / "source" / "text_encoder" / "model.safetensors")
    names = {f"text_model.{name.removeprefix('text_model.')}" for name in published}
    assert set(found) == names


def test_stock_pipeline_draws_what_our_sampler_draws(exported):
    torchvision_operators.ensure()
    from diffusers import DiffusionPipeline

    folder, output = exported
    stock = DiffusionPipeline.from_pretrained(output, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    sampler = Sampler(folder / "generator.safetensors", solver={"name": "student"})
    states = load_text(folder / "text_encoder.safetensors").encode(PROMPTS).states
    (batch,) = sampler.batches(range(2), fixed_labels=torch.arange(2), states=states)
    ours = load_codec(folder / "autoencoder.safetensors").decode(batch.image)
    one = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "pt"}
    theirs = stock(PROMPTS, latents=batch.noise, **one).images
    assert batch.network_calls == 1
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=0)


def test_card_says_what_made_the_folder_and_how_good_it_is(exported):
    text = (exported[1] / "README.md").read_text()
    source = tensor_files.load_metadata(exported[0] / "denoiser.safetensors")["source_sha256"]
    for part in (
        "# words: a one-step text-to-image model",
        "trained for a single call at timestep 999, without guidance",
        "diffusers refuses any other number, its default of 50 included.",
        "Distribution Matching Distillation (Yin et al. 2023, arXiv 2311.18828",
        "| method | dmd |",
        "| updates | 7 |",
        "| phases | 2 |",
        "| guidance | 3 |",
        "| regression_weight | 0.25 |",
        "learning_rate 1e-05",
        "| seed | 7 |",
        "| fd-inception | 12.35 | 0.5 | 8 | 1 |",
        "| retrieval-clip-judge, top 1 | 0.25 | - | 8 | 1 |",
        "| retrieval-clip-judge, top 5 | 0.5 | 0.125 | 8 | 1 |",
        "Open RAIL-M",
        "51",
        source,
        "LAION",
        "| prompts | 2 |",
    ):
        assert part in text


def test_card_of_a_student_without_pairs_counts_its_text_states(exported, tmp_path):
    folder = exported[0]
    table = manifests.SCHEMA.empty_table()
    manifests.write(tmp_path / "states.parquet", table, {"facts": {"num_truncated": 3}})
    paths = {name: folder / f"{name}.safetensors" for name in ("generator", "text_encoder", "autoencoder")}
    paths |= {"prompts": folder / "prompts.parquet", "states": tmp_path / "states.parquet"}
    output = tmp_path / "pipeline" / "model_index.json"
    export_pipeline.run(**paths, output=output, experiment="words")
    text = (output.parent / "README.md").read_text()
    assert "| text states | 0 |" in text and "| truncated prompts | 3 |" in text and "| pairs |" not in text


def test_card_leaves_out_scores_of_another_generator(exported, tmp_path):
    folder = exported[0]
    paths = {name: folder / f"{name}.safetensors" for name in ("generator", "text_encoder", "autoencoder")}
    tensors, facts = tensor_files.load(paths["generator"])
    paths |= {"generator": tmp_path / "generator.safetensors", "prompts": folder / "prompts.parquet"}
    tensor_files.write(paths["generator"], tensors, facts)
    mine = {"generator": {str(paths["generator"]): files.sha256(paths["generator"])}}
    score_files.write(tmp_path / "fid.json", {**SCORE, "stage": "evaluate", "value": 3.25}, mine)
    scores = [tmp_path / "fid.json", folder / "retrieval.json"]
    export_pipeline.run(**paths, scores=scores, output=tmp_path / "pipeline" / "model_index.json", experiment="words")
    text = (tmp_path / "pipeline" / "README.md").read_text()
    assert "| fd-inception | 3.25 |" in text and "retrieval" not in text


def test_other_generators_have_no_pipeline(exported, tmp_path):
    folder = exported[0]
    paths = {name: folder / f"{name}.safetensors" for name in ("text_encoder", "autoencoder")}
    paths |= {"prompts": folder / "prompts.parquet"}
    paths |= {"manifest": folder / "manifest.parquet", "output": tmp_path / "model_index.json"}
    with pytest.raises(ValueError, match="denoiser.safetensors is no generator"):
        export_pipeline.run(generator=folder / "denoiser.safetensors", **paths, experiment="words")
    tensors, facts = tensor_files.load(folder / "generator.safetensors")
    tensor_files.write(tmp_path / "lower.safetensors", tensors, facts | {"sigma": 3.0, "calls": {"sigmas": [3.0]}})
    with pytest.raises(ValueError, match="makes 1 call that no pipeline .*: call 1 of 1 is at sigma 3,"):
        export_pipeline.run(generator=tmp_path / "lower.safetensors", **paths, experiment="words")
    lacking = {key: path for key, path in paths.items() if key != "autoencoder"}
    with pytest.raises(ValueError, match="generator.safetensors needs --autoencoder of its teacher"):
        export_pipeline.run(generator=folder / "generator.safetensors", **lacking, experiment="words")
    assert not (tmp_path / "model_index.json").exists()


def test_adapter_makes_the_teachers_pipeline_the_generator(exported, tmp_path):
    torchvision_operators.ensure()
    from diffusers import DiffusionPipeline, LCMScheduler

    folder, output = exported
    tensors, facts = tensor_files.load(folder / "generator.safetensors")
    begun = {name[4:]: value for name, value in tensors.items() if name.startswith("ema.")}
    places = [name.removesuffix(".weight") for name in begun if name.endswith(("to_q.weight", "conv1.weight"))]
    torch.manual_seed(2)
    weights = {}
    for place in places:
        weight = begun[f"{place}.weight"]
        down = (3, *weight.shape[1:])
        weights[f"{place}.lora_A.weight"] = torch.randn(down) / weight[0].numel() ** 0.5
        up = (len(weight), 3) + (1,) * (weight.ndim - 2)
        weights[f"{place}.lora_B.weight"] = 0.2 * torch.randn(up)
    whole = {f"ema.{name}": value for name, value in merge_adapter(begun, weights, scale=2.0).items()}
    whole |= {f"lora.{name}": value for name, value in weights.items()}
    adapter = {"rank": 3, "alpha": 6.0, "targets": None}
    tensor_files.write(tmp_path / "generator.safetensors", whole, facts | {"adapter": adapter})
    export_lora.run(generator=tmp_path / "generator.safetensors", output=tmp_path / "pytorch_lora_weights.safetensors")
    stock = DiffusionPipeline.from_pretrained(output, local_files_only=True)  # its weights are those of `begun`
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = LCMScheduler.from_pretrained(output, subfolder="scheduler")
    one = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "latent"}
    noise = torch.randn(2, 4, 16, 16)
    before = stock(PROMPTS, latents=noise, **one).images
    stock.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    after = stock(PROMPTS, latents=noise, **one).images
    sampler = Sampler(tmp_path / "generator.safetensors", solver={"name": "student"})
    states = load_text(folder / "text_encoder.safetensors").encode(PROMPTS).states
    ours = sampler.denoiser(noise * (1 + facts["sigma"] ** 2) ** 0.5, torch.full((2,), facts["sigma"]), states)
    assert (after - before).abs().mean() > 0.05 * before.abs().mean()
    torch.testing.assert_close(after, ours, atol=1e-4 * float(ours.std()) + 1e-4, rtol=1e-4)


def test_generator_without_adapter_has_no_adapter_file(exported, tmp_path):
    with pytest.raises(ValueError, match="set distill.adapter"):
        export_lora.run(generator=exported[0] / "generator.safetensors", output=tmp_path / "lora.safetensors")
