"""Distillation of a tiny Stable Diffusion: closer to its teacher, prompts of random pairs, decoders by phase."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from dmd import loading
from dmd.artifacts import manifest as manifests
from dmd.artifacts import record, tensors
from dmd.artifacts.pairs import PairReader
from dmd.diffusion.solver import solve
from dmd.methods.phases import plan
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from dmd.metrics.frechet import moments_distance
from dmd.metrics.moments import Moments
from dmd.stages import agreement, autoencoder, distill, pairs
from dmd.stages import manifest as manifest_stage
from dmd.stages.feed import Feed
from tests.conftest import with_section
from tests.stable_diffusion_files import make_tiny_autoencoder
from tests.text_files import PROMPTS, import_all, write_prompts

NAMES = ("generator.safetensors", "log.parquet")
NUM, SHAPE = 32, (4, 8, 8)
PAIRS = {"solver": {"name": "ddim", "steps": 5}, "batch_size": 16, "labels": "random", "guidance": 3.0}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """teacher/, pairs/ and other/ (pairs of other noise); not to be changed."""
    folder = tmp_path_factory.mktemp("text")
    files = import_all(folder, resolution=8)
    tiny = make_tiny_autoencoder(folder / "tiny")
    autoencoder.run(output=files / "tiny_autoencoder.safetensors", source=tiny, kind="tiny")
    texts = {"prompts": write_prompts(folder / "prompts", PROMPTS)}
    texts["text_encoder"] = files / "text_encoder.safetensors"
    for name, seed in (("pairs", 2**31), ("other", 5)):
        block = folder / name / "blocks" / "00000-00001.parquet"
        places = {"first": 0, "last": 1, "shard_size": NUM // 2, "first_seed": seed}
        pairs.run(teacher=files / "denoiser.safetensors", output=block, **texts, **places, **PAIRS)
        manifest_stage.run(blocks=[block], output=folder / name / "manifest.parquet", num=NUM, shard_size=NUM // 2)
    return folder


@pytest.fixture
def numbers(distill_numbers) -> dict:
    """Spec of a distillation with guidance, all its pairs joined."""
    levels = {"kind": "teacher", "min_index": 20, "max_index": 980}
    changed = {"sigma": None, "levels": levels, "guidance": 3.0, "match_pairs": True, "matching_batch_size": 3}
    phase = distill_numbers["phases"][2] | {"updates": 2, "fake_updates": 2, "learning_rate_scale": 1.0}
    return distill_numbers | changed | {"phases": [phase], "checkpoint_every": 100, "grid_every": 100}


def run(folder: Path, chain: Path, numbers: dict, **files) -> Path:
    given = {"teacher": chain / "teacher" / "denoiser.safetensors", "manifest": chain / "pairs" / "manifest.parquet"}
    distill.run(output=folder / NAMES[0], table=folder / NAMES[1], **{**given, **files}, **with_section(numbers))
    return folder


def decoders(chain: Path) -> dict[str, Path]:
    return {name: chain / "teacher" / f"{name}.safetensors" for name in ("tiny_autoencoder", "autoencoder")}


def distance(path: Path, chain: Path) -> float:
    """Frechet distance of one-step latents to the teacher's, of the same noise and prompts, as averages of 4x4."""
    noise, text, image = PairReader(manifests.read(chain / "other" / "manifest.parquet"), seed=0).batch(0, NUM)
    denoiser, facts = loading.load_denoiser(path)
    found, _ = solve(denoiser, noise, text, {"name": "one-step", "sigma": facts["sigma_max"]})
    means = [torch.nn.functional.avg_pool2d(each, 4).flatten(1).double() for each in (found, image)]
    return moments_distance(*map(Moments.of, means))


@pytest.mark.parametrize(
    "adapter", [None, {"rank": 8, "alpha": None, "targets": ["conv1", "conv2", "proj_in", "proj_out", "conv_out"]}]
)
def test_latents_of_the_generator_come_closer_to_those_of_the_teacher(chain, numbers, tmp_path, adapter):
    phase = numbers["phases"][0] | {"updates": 18, "fake_updates": 1, "learning_rate_scale": 6.0 if adapter else 1.0}
    numbers |= {"phases": [phase], "matching_batch_size": 4, "regression_batch_size": 4}
    numbers |= {"adapter": adapter} if adapter else {}
    generator = run(tmp_path, chain, numbers) / NAMES[0]
    before, after = (distance(path, chain) for path in (chain / "teacher" / "denoiser.safetensors", generator))
    print(f"distance to latents of the teacher: {before:.3g} before, {after:.3g} after")
    assert after < 0.7 * before
    facts, taught = (tensors.load_metadata(path) for path in (generator, chain / "teacher" / "denoiser.safetensors"))
    for key in ("network", "preconditioning", "scheduler", "shape", "image_shape", "num_classes", "text"):
        assert facts[key] == taught[key], key
    assert facts["sigma"] == taught["sigma_max"] and facts["spec"]["sigma"] is None


def test_decoders_of_phases_are_applied_and_a_run_continues_in_the_middle(chain, numbers, tmp_path):
    (phase,) = numbers["phases"]
    numbers |= {"regression_distance": {"kind": "l2", "decoder": "tiny"}, "checkpoint_every": 1}
    numbers |= {"phases": [phase | {"num_pairs": 16}, phase | {"decoder": "full"}, phase | {"decoder": "none"}]}
    whole = run(tmp_path / "whole", chain, numbers, **decoders(chain))
    losses = manifests.read_table(whole / NAMES[1])[0]["regression_loss"].to_pylist()
    plain = run(tmp_path / "none", chain, numbers | {"regression_distance": {"kind": "l2"}, "phases": [phase]})
    assert len(set(losses)) == 6 and losses[0] not in manifests.read_table(plain / NAMES[1])[0]["regression_loss"]
    stopped, numbers["grid_every"] = tmp_path / "stopped", 3
    (stopped / "grids" / "00000003.png").mkdir(parents=True)  # a crash after the first update of the second phase
    with pytest.raises(OSError):
        run(stopped, chain, numbers, **decoders(chain))
    shutil.rmtree(stopped / "grids")
    numbers["grid_every"] = 100
    run(stopped, chain, numbers, **decoders(chain))
    assert [record.check(stopped / name) for name in NAMES] == [record.check(whole / name) for name in NAMES]
    for name, flag in (("tiny_autoencoder", "--tiny-autoencoder"), ("autoencoder", "--autoencoder")):
        lacking = {key: path for key, path in decoders(chain).items() if key != name}
        with pytest.raises(ValueError, match=f"needs the autoencoder's file: give {flag}"):
            run(tmp_path / name, chain, numbers, **lacking)


def test_prompts_of_a_matching_batch_are_those_of_random_pairs_of_the_phase(chain, numbers):
    table, facts = manifests.read(chain / "pairs" / "manifest.parquet"), {"shape": SHAPE, "num_classes": 0, "text": {}}
    numbers["phases"][0]["num_pairs"] = 16
    parts = []
    for share in (Share(), Share(0, 2), Share(1, 2)):
        feed = Feed(PairReader(table, seed=0), plan(numbers)[0], numbers, share, facts=facts)
        parts.append(feed.take(1)[0])
        feed.close()
    random = update_generator("distill", 0, 1)
    noise = torch.randn(3, *SHAPE, generator=random)
    rows = torch.randint(16, (3,), generator=random)
    expected = PairReader(table, seed=0).texts(rows.tolist())
    assert torch.equal(parts[0].noise, noise) and torch.equal(parts[0].label[0:3], expected)
    assert expected.dtype == torch.float32 and expected.shape == (3, 77, 32)
    assert torch.equal(torch.cat([part.label.values for part in parts[1:]]), expected)


def test_another_first_time_of_the_pairs_is_said(chain, numbers, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    facts = manifests.read(chain / "pairs" / "manifest.parquet").metadata["facts"]
    assert facts["first_timestep"] == 801  # 4 * 200 + 1: spacing leading, with an offset of 1
    run(tmp_path, chain, numbers)
    assert "the solver of the pairs starts at time 801, the generator at 999, from equal noise" in caplog.text


def test_guidance_and_text_need_what_they_are_made_of(chain, numbers, manifest_file, teacher_file, tmp_path):
    numbers["matching_batch_size"] = 4
    plain = {"teacher": teacher_file, "manifest": manifest_file}
    with pytest.raises(ValueError, match="knows no prompts: it has no text states of the empty one"):
        run(tmp_path, chain, numbers | {"sigma": 80.0, "levels": {"kind": "karras"}}, **plain)
    facts = tensors.load_metadata(chain / "teacher" / "denoiser.safetensors")
    paths = Path("teacher"), Path("start"), Path("manifest")
    with pytest.raises(ValueError, match=r"teacher takes text states \{.*, start None: they must agree"):
        agreement.check(facts, facts | {"text": None}, facts, 1.0, paths)
    with pytest.raises(ValueError, match="its pairs hold no text states"):
        PairReader(manifests.read(manifest_file), seed=0).texts([0])
    assert "guidance" in json.dumps(numbers) and not (tmp_path / NAMES[0]).exists()
