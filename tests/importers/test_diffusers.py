"""Teachers from folders of diffusers: its own x0 at its own levels, DMD on them, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dmd import torchvision_operators
from dmd.data import manifest as manifests
from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.stages import autoencoder, manifest, pairs, teacher
from tests.trainings import NAMES, changed, distil

UNET = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1}
UNET |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
UNET |= {"norm_num_groups": 8}
SCHEDULES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"trained_betas": np.linspace(1e-3, 0.3, 50).tolist(), "num_train_timesteps": 50},
]


def saved(folder: Path, *, scheduler: str = "DDIMScheduler", levels: dict[str, Any] | None = None, **unet: Any) -> Any:
    """A random pipeline saved by diffusers itself; returns network and scheduler."""
    torchvision_operators.ensure()
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**{**UNET, **unet}).eval()
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    found = getattr(diffusers, scheduler)(**{"clip_sample": False, **(levels or {})})
    pipeline = diffusers.DDIMPipeline if scheduler == "DDIMScheduler" else diffusers.DDPMPipeline
    pipeline(unet=network, scheduler=found).save_pretrained(folder)
    return network, found


def imported(source: Path, output: Path, **numbers: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    teacher.run(output=output, table=output.with_name("log.parquet"), kind="diffusers", source=source, **numbers)
    return loading.load_denoiser(output)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_denoiser_at_a_level_is_the_x0_of_diffusers_own_step(prediction, schedule, tmp_path):
    network, scheduler = saved(tmp_path / "p", levels={"prediction_type": prediction, **schedule})
    denoiser, metadata = imported(tmp_path / "p", tmp_path / "t")
    last = scheduler.config.num_train_timesteps - 1
    scheduler.set_timesteps(last + 1)
    image, label = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), -1)
    for time in (0, 7, last // 2, last):
        square = float(scheduler.alphas_cumprod[time].double())
        alpha, sigma = square**0.5, ((1 - square) / square) ** 0.5
        with torch.no_grad():
            out = network(image, torch.full((2,), time)).sample
            found = denoiser(image / alpha, torch.full((2,), sigma), label)
        expected = scheduler.step(out, time, image).pred_original_sample
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
        closed = {
            "epsilon": (image - (1 - square) ** 0.5 * out) / alpha,
            "v_prediction": alpha * image - (1 - square) ** 0.5 * out,
            "sample": out,
        }[prediction]
        torch.testing.assert_close(found, closed, rtol=1e-4, atol=1e-4 * float(closed.std()))
    assert metadata["sigma_max"] == pytest.approx(sigma) and metadata["num_classes"] == 0
    assert metadata["shape"] == [3, 8, 8] and metadata["sigma_min"] < 0.2


def test_classes_and_learnt_variances_are_dealt_with(tmp_path):
    network, scheduler = saved(tmp_path / "p", scheduler="DDPMScheduler", num_class_embeds=4, out_channels=6)
    denoiser, metadata = imported(tmp_path / "p", tmp_path / "t")
    assert metadata["num_classes"] == 4 and metadata["shape"] == [3, 8, 8]
    image, label = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0])
    square = scheduler.alphas_cumprod[400]
    with torch.no_grad():
        found = denoiser(image / square.sqrt(), ((1 - square) / square).sqrt().expand(2), label)
        out = network(image, torch.full((2,), 400), class_labels=label).sample
        other = denoiser(image / square.sqrt(), ((1 - square) / square).sqrt().expand(2), label.flip(0))
    torch.testing.assert_close(found, (image - (1 - square).sqrt() * out[:, :3]) / square.sqrt(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, other, rtol=0.01)
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=rf"label: .*{bad}.* is outside 0 \.\. 3"):
            denoiser(image, torch.ones(2), torch.tensor([0, bad]))


def with_vae(folder: Path, **vae: Any) -> Any:
    """Makes a saved pipeline one of latents; returns its autoencoder."""
    import diffusers

    numbers = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3, **vae}
    numbers |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    found = diffusers.AutoencoderKL(**numbers).eval()
    found.save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    return found


def test_pipeline_with_a_vae_is_a_class_conditional_teacher_of_latents(tmp_path):
    network, scheduler = saved(tmp_path / "p", num_class_embeds=4)
    vae = with_vae(tmp_path / "p")
    denoiser, metadata = imported(tmp_path / "p", tmp_path / "t", latent=True)
    assert metadata["shape"] == [3, 8, 8] and metadata["image_shape"] == [3, 16, 16] and metadata["num_classes"] == 4
    autoencoder.run(output=tmp_path / "a", source=tmp_path / "p", kind="diffusers")
    latent, label = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0])
    expected = vae.decode(latent / vae.config.scaling_factor).sample
    torch.testing.assert_close(loading.load_codec(tmp_path / "a").decode(latent), expected)
    alpha, sigma = (part[500].float() for part in denoiser.table)
    with torch.no_grad():
        out = network(latent, torch.full((2,), 500), class_labels=label).sample
        found = denoiser(latent / alpha, sigma.expand(2), label)
    torch.testing.assert_close(found, latent / alpha - sigma * out, rtol=1e-4, atol=1e-4)
    digest = tensor_files.load_metadata(tmp_path / "a")["source_sha256"]
    assert digest == metadata["source_sha256"]
    with pytest.raises(ValueError, match="teacher.latent is false, but the pipeline in .* works on latents"):
        imported(tmp_path / "p", tmp_path / "u")
    saved(tmp_path / "pixels")
    with pytest.raises(ValueError, match="teacher.latent is true, but the pipeline in .* has no vae"):
        imported(tmp_path / "pixels", tmp_path / "u", latent=True)
    with_vae(tmp_path / "p", latent_channels=5)
    with pytest.raises(ValueError, match="its latents have 5 channels, those of the network 3"):
        imported(tmp_path / "p", tmp_path / "u", latent=True)


def test_time_between_two_levels_is_not_rounded(tmp_path):
    _, scheduler = saved(tmp_path / "p")
    denoiser, _ = imported(tmp_path / "p", tmp_path / "t")
    seen: list[torch.Tensor] = []
    denoiser.network.unet.time_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    squares = scheduler.alphas_cumprod[100:102].double()
    sigma = ((1 - squares) / squares).log().mean().mul(0.5).exp()
    denoiser(torch.zeros(1, 3, 8, 8), sigma.float()[None], torch.tensor([-1]))
    assert seen[0].dtype == torch.float32 and float(seen[0]) == pytest.approx(100.5, abs=1e-3)


def test_folders_of_all_forms_give_the_same_teacher(tmp_path):
    saved(tmp_path / "whole")
    whole, metadata = imported(tmp_path / "whole", tmp_path / "a")
    shutil.copytree(tmp_path / "whole" / "unet", tmp_path / "bare")
    shutil.copy(tmp_path / "whole" / "scheduler" / "scheduler_config.json", tmp_path / "bare")
    weights = safetensors.torch.load_file(tmp_path / "bare" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "bare" / "diffusion_pytorch_model.safetensors").unlink()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    parts = {"one.safetensors": sorted(weights)[::2], "two.safetensors": sorted(weights)[1::2]}
    for file, names in parts.items():
        safetensors.torch.save_file({name: weights[name] for name in names}, tmp_path / "bare" / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "bare" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    bare, other = imported(tmp_path / "bare", tmp_path / "b")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name])
    assert metadata["preconditioning"] == other["preconditioning"]
    same, again = imported(tmp_path / "whole", tmp_path / "c", sha256=metadata["source_sha256"][:8])
    assert again["source_sha256"] == metadata["source_sha256"] != other["source_sha256"]
    assert (tmp_path / "a").stat().st_size > 0 and len(record.read(tmp_path / "a")["inputs"]) == 4


@pytest.mark.parametrize(("num_classes", "latent"), [(None, False), (3, True)])
def test_dmd_runs_on_a_teacher_with_discrete_time(num_classes, latent, tmp_path, pairs_numbers, distill_section):
    saved(tmp_path / "p", num_class_embeds=num_classes, levels={"prediction_type": "v_prediction"})
    if latent:
        with_vae(tmp_path / "p")
    source = tmp_path / "teacher" / "denoiser.safetensors"
    denoiser, facts = imported(tmp_path / "p", source, latent=latent)
    sigma = facts["sigma_max"]
    solver = {"name": "heun", "steps": 4, "sigma_min": 0.02, "sigma_max": sigma, "rho": 7.0}
    block = tmp_path / "pairs" / "blocks" / "00000-00001.parquet"
    pairs.run(teacher=source, output=block, **pairs_numbers | {"solver": solver})
    manifest.run(blocks=[block], output=tmp_path / "pairs" / "manifest.parquet", num=12, shard_size=6)
    phase = {"updates": 2, "fake_updates": 1, "learning_rate_scale": 0.5}
    keys = {"levels": {"kind": "teacher", "min_index": 20, "max_index": 980}, "weighting": "sigma/alpha"}
    section = changed(
        distill_section,
        **keys,
        sigma=sigma,
        phases=[phase],
        grid_every=5,
        monitor={"decoder": "none", "num_images": 8, "seeds": 4},
    )
    distil(tmp_path / "d", section, teacher=source, manifest=tmp_path / "pairs" / "manifest.parquet")
    table, _ = manifests.read_table(tmp_path / "d" / NAMES[1])
    assert len(table) == 2
    losses, norms = ("loss/matching", "loss/regression", "loss/fake"), ("gradient_norm/student", "gradient_norm/fake")
    for name in losses + norms:
        assert np.isfinite(table[name].to_numpy()).all() and table[name][1].as_py() > 0
    generator, metadata = loading.load_denoiser(tmp_path / "d" / NAMES[0], weights="raw")
    for key in ("network", "preconditioning", "sigma_max", "shape", "num_classes"):
        assert metadata[key] == facts[key]
    before, after = denoiser.state_dict(), generator.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "conv1" in name)


def test_noise_beyond_the_teachers_is_refused(tmp_path, pairs_numbers):
    saved(tmp_path / "p", levels={"num_train_timesteps": 100})
    imported(tmp_path / "p", tmp_path / "t")
    with pytest.raises(
        ValueError, match="pairs.solver.sigma_min: 0.002 is outside 0.01.* the noise levels that .*/t was"
    ):
        pairs.run(teacher=tmp_path / "t", output=tmp_path / "blocks" / "b.parquet", **pairs_numbers)


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def pickled(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, path.with_suffix(".bin"))
    path.unlink()


def reweighted(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    found = safetensors.torch.load_file(path)
    del found["conv_in.bias"]
    safetensors.torch.save_file(found, path)


UNET_JSON, LEVELS_JSON = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: edit(p / LEVELS_JSON, _class_name="EulerDiscreteScheduler"), "'EulerDiscreteScheduler' is none of"),
        (lambda p: edit(p / LEVELS_JSON, prediction_type="flow"), "prediction_type 'flow' is none of"),
        (lambda p: edit(p / LEVELS_JSON, beta_schedule="cosine"), "scheduler_config.json .*: cosine"),
        (
            lambda p: edit(p / LEVELS_JSON, rescale_betas_zero_snr=True),
            "zero_snr True, but .* is epsilon",
        ),
        (lambda p: (p / LEVELS_JSON).unlink(), "scheduler_config.json is missing: the configuration of the scheduler"),
        (
            lambda p: edit(p / UNET_JSON, _class_name="UNet2DConditionModel"),
            "'UNet2DConditionModel' is not UNet2DModel",
        ),
        (
            lambda p: edit(p / UNET_JSON, time_embedding_type="fourier"),
            "time_embedding_type 'fourier' is not supported",
        ),
        (lambda p: edit(p / UNET_JSON, layers_per_block=2000), "ask for 4000 blocks, more than 1024"),
        (lambda p: edit(p / UNET_JSON, sample_size=None), "sample_size None is not the side"),
        (lambda p: edit(p / UNET_JSON, sample_size=[8, 4]), "is not the side of a square"),
        (lambda p: edit(p / UNET_JSON, out_channels=4), "4 output channels for 3"),
        (lambda p: edit(p / UNET_JSON, class_embed_type="timestep"), "unet/config.json: class_embed_type 'timestep'"),
        (
            lambda p: edit(p / UNET_JSON, auto_map="x.py"),
            "unet/config.json: auto_map 'x.py' is not supported: the key is unknown",
        ),
        (lambda p: edit(p / UNET_JSON, block_out_channels=[16, 64]), "holds another architecture: size mismatch"),
        (lambda p: (p / UNET_JSON).write_text("{"), "config.json cannot be read"),
        (lambda p: edit(p / "model_index.json", vqvae=["diffusers", "VQModel"]), "vqvae besides unet and scheduler"),
        (lambda p: edit(p / "model_index.json", unet=["my_code", "UNet"]), "is not a UNet2DModel of diffusers"),
        (pickled, "diffusion_pytorch_model.safetensors is missing: .*other formats are not read"),
        (reweighted, 'holds another architecture: Missing key.*"unet.conv_in.bias"'),
    ],
)
def test_folder_that_cannot_be_used_is_named(damage, message, tmp_path):
    saved(tmp_path / "p")
    damage(tmp_path / "p")
    with pytest.raises(ValueError, match=message) as refused:
        imported(tmp_path / "p", tmp_path / "t")
    assert "\n" not in str(refused.value) and not (tmp_path / "t").exists()


def test_weights_outside_the_folder_are_refused(tmp_path):
    saved(tmp_path / "p")
    index = {"weight_map": {"conv_in.bias": "../../secret.safetensors"}}
    (tmp_path / "p/unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map must name files beside it"):
        imported(tmp_path / "p", tmp_path / "t")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        imported(tmp_path / "nowhere", tmp_path / "t")
    (tmp_path / "p/unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="sha256 .*, but teacher.sha256 pins 00000000"):
        imported(tmp_path / "p", tmp_path / "t", sha256="00000000")
