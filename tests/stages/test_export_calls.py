"""Students of 1, 2, 4 and 8 calls as folders: stock diffusers draws what stage sample draws, from the same noise."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd import torchvision_operators
from dmd.models.loading import load_codec, load_text
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling import call_schedulers
from dmd.sampling.sampler import Sampler
from dmd.stages import export_pipeline, states
from dmd.stages import manifest as manifest_stage
from tests.models.networks.test_text_conditional import CONFIGS
from tests.text_files import PROMPTS, import_with_generator, write_prompts
from tests.trainings import NAMES, distil

CALLS = (1, 2, 4, 8)
SPEC: dict[str, Any] = {
    "method": {"name": "dmd2", "calls": 4, "phases": [{"updates": 3}]},
    "optimisers": {"student": {"learning_rate": 1.0e-5}},
    "seed": 7,
}
TEACHERS = {
    "epsilon": {"prediction": "epsilon"},
    "v": {"prediction": "v_prediction"},
    "v, no signal at the end": {"prediction": "v_prediction", "zero_snr": True},
}


@dataclass
class Places:
    """Files of a teacher, weights and metadata of a student of it, and the networks that decode."""

    files: dict[str, Path]
    weights: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def student(self, calls: Calls, folder: Path, **more: Any) -> Path:
        """Writes the student of these calls."""
        facts = self.facts | {"calls": calls.facts(), "sigma": calls.sigmas[0], "spec": SPEC} | more
        tensor_files.write(folder / "generator.safetensors", self.weights, facts)
        return folder / "generator.safetensors"

    def export(self, generator: Path, **more: Any) -> Path:
        """Writes the folder of a student, beside it."""
        output = generator.parent / "pipeline" / "model_index.json"
        others = {name: self.files[name] for name in ("text_encoder", "autoencoder", "prompts")}
        export_pipeline.run(generator=generator, **others, output=output, experiment="words", **more)
        return output.parent

    def sigmas(self, timesteps: list[int]) -> tuple[float, ...]:
        """The teacher's levels."""
        squares = torch.tensor(self.facts["preconditioning"]["alphas_cumprod"], dtype=torch.float64)[timesteps]
        return tuple(((1 - squares) / squares).sqrt().tolist())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Callable[[str], Places]:
    """Makes the files of a teacher, once."""

    @functools.cache
    def make(teacher: str) -> Places:
        folder = tmp_path_factory.mktemp("calls")
        files = import_with_generator(folder, **TEACHERS[teacher])
        files["prompts"] = write_prompts(folder, PROMPTS)
        return Places(files, *tensor_files.load(files["generator"]))

    return make


def sampled(places: Places, generator: Path, seeds: range, **more: Any) -> torch.Tensor:
    """Images of stage sample for the first prompts, in [0, 1]."""
    sampler = Sampler(generator, solver={"name": "student"}, **more)
    states = load_text(places.files["text_encoder"]).encode(PROMPTS[: len(seeds)]).states
    (batch,) = sampler.batches(seeds, states=states)
    image: torch.Tensor = load_codec(places.files["autoencoder"]).decode(batch.image)
    assert image.std() > 0.05
    return (image / 2 + 0.5).clamp(0, 1)


def opened(folder: Path, **parts: Any) -> Any:
    """The stock pipeline."""
    torchvision_operators.ensure()
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    stock.set_progress_bar_config(disable=True)
    return stock


def drawn(stock: Any, seeds: range, **call: Any) -> torch.Tensor:
    """Images of a stock pipeline, whose generators have the seeds of the samples."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = {"guidance_scale": 0, "output_type": "pt"} | call
    images: torch.Tensor = stock(PROMPTS[: len(seeds)], generator=generators, **given).images
    return images


SEEDS = range(5, 8)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize(("kind", "num"), [*(("lcm", num) for num in CALLS), ("ddim", 4)])
def test_stock_pipeline_draws_the_samples(kind, num, teacher, place, tmp_path):
    places = place(teacher)
    made = call_schedulers.lcm(places.facts) if kind == "lcm" else call_schedulers.ddim(places.facts, "trailing")
    generator = places.student(call_schedulers.read_calls(made, places.facts, num), tmp_path)
    ours, stock = sampled(places, generator, SEEDS), opened(places.export(generator))
    torch.testing.assert_close(drawn(stock, SEEDS, num_inference_steps=num), ours, atol=1e-4, rtol=0)
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert f"num_inference_steps={num}, guidance_scale=0)" in card and "Its default, 7.5, is accepted" in card
    if kind == "ddim":
        assert "accepts any other number up to 1000 without a warning, its default of 50 included" in card
        assert (drawn(stock, SEEDS) - ours).abs().max() > 0.01
    else:
        assert "its default of 50 included" in card and "refuses" in card
        for wrong in (num + 1, 50):
            with pytest.raises(ValueError, match="original_steps x strength"):
                drawn(stock, SEEDS, num_inference_steps=wrong)
    if num == 4 and kind == "lcm":
        assert "with timesteps in brackets: 1 (999); 2 (999, 499); 3 (999, 749, 499)." in card
        assert "trained for 4 calls at timesteps 999, 749, 499, 249, without guidance" in card
        assert (drawn(stock, SEEDS, num_inference_steps=3) - ours).abs().max() > 0.01
        assert (drawn(stock, SEEDS, num_inference_steps=4, guidance_scale=7.5) - ours).abs().max() > 0.01


def test_listed_levels_and_fewer_calls_are_exported_where_a_scheduler_makes_them(place, tmp_path):
    places = place("epsilon")
    rounded = tuple(float(f"{sigma:.6g}") for sigma in places.sigmas([999, 666, 333]))
    generator = places.student(Calls(rounded), tmp_path)
    stock = opened(places.export(generator))
    ours = sampled(places, generator, SEEDS)
    torch.testing.assert_close(drawn(stock, SEEDS, num_inference_steps=3), ours, atol=1e-3, rtol=0)
    first = opened(places.export(generator, calls=1))
    ours = sampled(places, generator, SEEDS, calls=1)
    torch.testing.assert_close(drawn(first, SEEDS, num_inference_steps=1), ours, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="makes 2 calls .*call 2 of 2 is at timestep 666 .* at timesteps 999, 499"):
        places.export(generator, calls=2)
    with pytest.raises(ValueError, match="is no student of 5 calls, but of 1, 2, 3"):
        places.export(generator, calls=5)


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (
            Calls((14.6146, 3.0)),
            "makes 2 calls that no pipeline .* call 2 of 2 is at sigma 3, between two timesteps.*; method dmd2 .* lcm",
        ),
        (
            Calls((14.6146, 0.4), "ode"),
            "call 2 of 2 is at sigma 0.4, between two timesteps.* here; with the levels of timesteps of DDIMScheduler",
        ),
        (Calls((3.0,)), "makes 1 call that no pipeline .* call 1 of 1 is at sigma 3"),
        (Calls((14.6146,), map="consistency", sigma_min=0.03), "its map is consistency, and .*It can be sampled here$"),
    ],
)
def test_calls_that_no_scheduler_makes_have_no_folder(calls, words, place, tmp_path):
    places = place("epsilon")
    generator = places.student(calls, tmp_path)
    with pytest.raises(ValueError, match=words):
        places.export(generator)
    assert not (tmp_path / "pipeline" / "model_index.json").exists()
    if calls.map == "denoiser":
        assert sampled(places, generator, SEEDS).isfinite().all()


def test_student_trained_at_the_times_of_a_scheduler_is_what_the_stock_pipeline_draws(place, tmp_path):
    places = place("epsilon")
    block = tmp_path / "states" / "blocks" / "00000-00000.parquet"
    texts = {"prompts": places.files["prompts"], "text_encoder": places.files["text_encoder"]}
    states.run(**texts, output=block, shard_size=4, first=0, last=0, device="cpu", threads=1)
    manifest = tmp_path / "states" / "manifest.parquet"
    manifest_stage.run(blocks=[block], output=manifest, num=4, shard_size=4)
    method = {"name": "dmd2", "calls": 2, "times": {"kind": "lcm"}, "levels": {"kind": "teacher"}, "guidance": 2.0}
    method |= {"batch_size": 2, "phases": [{"updates": 2, "fake_updates": 1}]}
    section = {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}}
    section |= {"monitor": None}
    given = {"teacher": places.files["teacher"], "states": manifest}
    for times, words in (
        ({"kind": "flow-match-euler"}, "times: flow-match-euler cannot make 2 calls with this teacher: .*flow"),
        ({"kind": "karras"}, r"times: call 1 of 2 is at sigma 80, but .* was trained on 0.0291\d* .. 14.6\d*: .*null"),
        ({"kind": "listed", "sigmas": [5.0, 0.01]}, "times: call 2 of 2 is at sigma 0.01, but"),
        ({"kind": "karras", "sigma_min": 20.0, "sigma_max": None}, "times.sigma_min: 20 is not below 14.6"),
    ):
        with pytest.raises(ValueError, match=words):
            distil(tmp_path, section | {"method": method | {"times": times}}, **given)
    generator = distil(tmp_path, section, **given) / NAMES[0]
    facts = tensor_files.load_metadata(generator)
    scheduler = facts["calls"]["scheduler"]
    assert scheduler["class"] == "LCMScheduler" and scheduler["timesteps"] == [999, 499]
    assert facts["calls"]["sigmas"] == list(places.sigmas([999, 499]))
    stock, ours = opened(places.export(generator)), sampled(places, generator, SEEDS)
    torch.testing.assert_close(drawn(stock, SEEDS, num_inference_steps=2), ours, atol=1e-4, rtol=0)
    assert dict(scheduler["config"]).items() <= dict(stock.scheduler.config).items()
    assert "DMD2 (Yin et al. 2024" in (tmp_path / "pipeline" / "README.md").read_text()


def flow_student(folder: Path, calls: Calls) -> Path:
    """A student with the transformer of Stable Diffusion 3, whose teacher has shift 3."""
    torch.manual_seed(0)
    network = build({"kind": "sd3", "config": CONFIGS["sd3"]})
    weights = {f"ema.{name}": value + 0.05 * torch.randn_like(value) for name, value in network.state_dict().items()}
    facts = FLOW | {"kind": "generator", "calls": calls.facts(), "sigma": calls.sigmas[0], "spec": SPEC}
    tensor_files.write(folder / "generator.safetensors", weights, facts)
    return folder / "generator.safetensors"


FLOW = {"network": {"kind": "sd3", "config": CONFIGS["sd3"]}, "preconditioning": {"kind": "flow"}}
FLOW |= {"shape": [4, 8, 8], "num_classes": 0, "sigma_data": 1.0, "text": {"length": 7, "width": 24}}
FLOW |= {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}}


@pytest.mark.parametrize("renoise", [True, False])
@pytest.mark.parametrize("num", CALLS)
def test_stock_pipeline_of_flow_draws_the_samples(num, renoise, tmp_path):
    """Its noise between calls comes from torch's global generator, so that images are drawn one at a time."""
    even = {"shift": 1.0, "terminal": 1 / num} if num > 1 else {}
    calls = call_schedulers.read_calls(call_schedulers.flow(FLOW, renoise=renoise, **even), FLOW, num)
    generator = flow_student(tmp_path, calls)
    output = tmp_path / "pipeline" / "model_index.json"
    export_pipeline.run(generator=generator, output=output, experiment="flow")
    label = torch.randn(len(SEEDS), 7, 24, generator=torch.Generator().manual_seed(1))
    (batch,) = Sampler(generator, solver={"name": "student"}).batches(SEEDS, states=label)
    absent = ("vae", *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")))
    stock, theirs = opened(output.parent, **dict.fromkeys(absent)), []
    assert type(stock).__name__ == "StableDiffusion3Pipeline"
    for seed, row in zip(SEEDS, label, strict=True):
        torch.manual_seed(seed)
        given = {"prompt_embeds": row[None, :-1], "pooled_prompt_embeds": row[None, -1, :10]}
        theirs.append(stock(**given, num_inference_steps=num, guidance_scale=0, output_type="latent").images)
    assert batch.image.std() > 0.1
    torch.testing.assert_close(torch.cat(theirs), batch.image, atol=1e-4, rtol=0)
    card = (output.parent / "README.md").read_text()
    assert "accepts any other number up to 1000 without a warning, its default of 28 included" in card
    assert "no text encoders and no autoencoder" in card
    assert 'SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")' in card
