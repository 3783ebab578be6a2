"""Distillation of a tiny Stable Diffusion: closer to its teacher, prompts of random pairs, decoders by phase."""

import io
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch

from dmd.data import manifest as manifests
from dmd.data.pairs import PairReader
from dmd.methods.base import Facts, Part
from dmd.metrics.frechet import moments_distance
from dmd.metrics.moments import Moments
from dmd.metrics.teacher_comparison import CLIP, CONTRAST, FEATURES, SAME_NOISE, SATURATION, SHARPNESS
from dmd.models import loading
from dmd.models.loading import DenoiserFile
from dmd.provenance import tensor_files
from dmd.sampling.solvers import solve
from dmd.stages import autoencoder, pairs
from dmd.stages import manifest as manifest_stage
from dmd.train import input_checks, loop
from dmd.train.data import NoiseStream
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import update_generator
from tests.clip_files import make_clip
from tests.conftest import DISTILL
from tests.stable_diffusion_files import make_tiny_autoencoder
from tests.text_files import PROMPTS, import_all, write_prompts
from tests.trainings import NAMES, changed, digests, distil

PHASE = {"updates": 2, "fake_updates": 2}
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


@pytest.fixture(scope="module")
def section() -> dict:
    """Section of a distillation with guidance, all its pairs joined; not to be changed."""
    levels = {"kind": "teacher", "min_index": 20, "max_index": 980}
    keys = {"sigma": None, "levels": levels, "guidance": 3.0, "match_pairs": True, "matching_batch_size": 3}
    keys |= {"phases": [PHASE], "checkpoint_every": 100, "grid_every": 100, "monitor": None}
    return changed(DISTILL, **keys)


def run(folder: Path, chain: Path, section: dict, **files) -> Path:
    given = {"teacher": chain / "teacher" / "denoiser.safetensors", "manifest": chain / "pairs" / "manifest.parquet"}
    return distil(folder, section, **{**given, **files})


@pytest.fixture(scope="module")
def plain(chain, section, tmp_path_factory) -> tuple[Path, str]:
    """Folder, not to be changed, and log lines of a distillation of `section`."""
    logger, said = logging.getLogger("dmd"), io.StringIO()
    level, handler = logger.level, logging.StreamHandler(said)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return run(tmp_path_factory.mktemp("plain"), chain, section), said.getvalue()
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def decoders(chain: Path) -> dict[str, Path]:
    return {name: chain / "teacher" / f"{name}.safetensors" for name in ("tiny_autoencoder", "autoencoder")}


def distance(path: Path, chain: Path) -> float:
    """Frechet distance of one-step latents to the teacher's, of the same noise and prompts, as averages of 4x4."""
    noise, text, image = PairReader(manifests.read(chain / "other" / "manifest.parquet"), seed=0).batch(0, NUM)
    denoiser, facts = loading.load_denoiser(path)
    found, _ = solve(denoiser, noise, text, {"name": "student", "calls": {"sigmas": [facts["sigma_max"]]}})
    means = [torch.nn.functional.avg_pool2d(each, 4).flatten(1).double() for each in (found, image)]
    return moments_distance(*map(Moments.of, means))


@pytest.mark.parametrize(
    "adapter", [None, {"rank": 8, "alpha": None, "targets": ["conv1", "conv2", "proj_in", "proj_out", "conv_out"]}]
)
def test_latents_of_the_generator_come_closer_to_those_of_the_teacher(chain, section, tmp_path, adapter):
    phase = {"updates": 18, "fake_updates": 1, "learning_rate_scale": 6.0 if adapter else 1.0}
    keys = {"phases": [phase], "matching_batch_size": 4, "regression_batch_size": 4, "adapter": adapter}
    generator = run(tmp_path, chain, changed(section, **keys)) / NAMES[0]
    before, after = (distance(path, chain) for path in (chain / "teacher" / "denoiser.safetensors", generator))
    print(f"distance to latents of the teacher: {before:.3g} before, {after:.3g} after")
    assert after < 0.7 * before
    facts, taught = (
        tensor_files.load_metadata(path) for path in (generator, chain / "teacher" / "denoiser.safetensors")
    )
    for key in ("network", "preconditioning", "scheduler", "shape", "image_shape", "num_classes", "text"):
        assert facts[key] == taught[key], key
    assert facts["sigma"] == taught["sigma_max"] and facts["spec"]["method"]["sigma"] is None


def test_decoders_of_phases_are_applied_and_a_run_continues_in_the_middle(chain, section, plain, tmp_path):
    phases = [PHASE | {"num_pairs": 16}, PHASE | {"decoder": "full"}, PHASE | {"decoder": "none"}]
    section = changed(section, regression_distance={"kind": "l2", "decoder": "tiny"}, checkpoint_every=1, phases=phases)
    whole = run(tmp_path / "whole", chain, section, **decoders(chain))
    losses = manifests.read_table(whole / NAMES[1])[0]["loss/regression"].to_pylist()
    latents = manifests.read_table(plain[0] / NAMES[1])[0]["loss/regression"].to_pylist()
    assert len(set(losses)) == 6 and losses[0] not in latents
    stopped = tmp_path / "stopped"
    (stopped / "grids" / "00000003.png").mkdir(parents=True)  # a crash after the first update of the second phase
    with pytest.raises(OSError):
        run(stopped, chain, changed(section, grid_every=3), **decoders(chain))
    shutil.rmtree(stopped / "grids")
    run(stopped, chain, section, **decoders(chain))
    assert digests(stopped) == digests(whole)
    for name, flag in (("tiny_autoencoder", "--tiny-autoencoder"), ("autoencoder", "--autoencoder")):
        lacking = {key: path for key, path in decoders(chain).items() if key != name}
        with pytest.raises(ValueError, match=f"needs the autoencoder's file: give {flag}"):
            run(tmp_path / name, chain, section, **lacking)


def test_prompts_of_a_matching_batch_are_those_of_random_pairs_of_the_phase(chain):
    table = manifests.read(chain / "pairs" / "manifest.parquet")
    stream = NoiseStream(Facts(SHAPE, 0, 1.0, text=True), PairReader(table, seed=0))
    parts = []
    for split in (BatchSplit(), BatchSplit(0, 2), BatchSplit(1, 2)):
        random, part = update_generator("distill", 0, 1), Part("noise", 3, "noise", among=16)
        parts.append(stream.rows(part, 0, split.part(3), random))
    random = update_generator("distill", 0, 1)
    noise = torch.randn(3, *SHAPE, generator=random)
    rows = torch.randint(16, (3,), generator=random)
    expected = PairReader(table, seed=0).texts(rows.tolist())
    assert torch.equal(parts[0]["noise"], noise) and torch.equal(parts[0]["label"], expected)
    assert expected.dtype == torch.float32 and expected.shape == (3, 77, 32)
    for name in ("noise", "label"):
        assert torch.equal(torch.cat([part[name] for part in parts[1:]]), parts[0][name])


def test_another_first_time_of_the_pairs_is_said(chain, plain):
    facts = manifests.read(chain / "pairs" / "manifest.parquet").metadata["facts"]
    assert facts["first_timestep"] == 801  # 4 * 200 + 1: spacing leading, with an offset of 1
    assert "the pairs' solver starts at timestep 801, the student at 999, with the same noise" in plain[1]


def test_guidance_and_text_need_what_they_are_made_of(chain, section, manifest_file, teacher_file, tmp_path):
    section = changed(section, matching_batch_size=4)
    plain = {"teacher": teacher_file, "manifest": manifest_file}
    with pytest.raises(ValueError, match="cannot be guided: it takes no prompts"):
        run(tmp_path, chain, changed(section, sigma=80.0, levels={"kind": "karras"}), **plain)
    with pytest.raises(ValueError, match="condition of this teacher is text: give --states, or --manifest of pairs"):
        run(tmp_path, chain, changed(section, regression_weight=0.0, match_pairs=False), manifest=None)
    facts = tensor_files.load_metadata(chain / "teacher" / "denoiser.safetensors")
    taught, started = DenoiserFile(Path("teacher"), facts), DenoiserFile(Path("start"), facts | {"text": None})
    with pytest.raises(ValueError, match=r"teacher takes text states \{.*, start.* takes None: they must be equal"):
        input_checks.check_denoisers(taught, started, None)
    with pytest.raises(ValueError, match="its pairs hold no text states"):
        PairReader(manifests.read(manifest_file), seed=0).texts([0])
    assert section["method"]["guidance"] > 1 and not (tmp_path / NAMES[0]).exists()


def test_a_student_is_measured_and_shown_in_decoded_images_and_against_its_prompts(
    chain, section, tmp_path, caplog, monkeypatch
):
    """There are 5 prompts for 6 conditions: the pairs repeat them."""
    shown = []
    monkeypatch.setattr(loop, "save_grid", lambda path, image: shown.append(image.shape))
    monitor = {"every": 1, "num_images": 24, "seeds": 4, "decoder": "tiny", "clip": True, "best": "clip"}
    monitored = {**section, "monitor": monitor}
    with pytest.raises(ValueError, match="monitor.clip: true needs `clip` of the spec, --clip-network and --prompts"):
        run(tmp_path / "odd", chain, monitored)
    clip = {"name": "clip", "sha256": None, "prefix": "A photo depicts "}
    files = {"clip_network": make_clip(tmp_path / "clip"), "prompts": chain / "prompts" / "prompts.parquet"}
    with pytest.raises(ValueError, match="monitor.decoder: tiny needs the autoencoder's file: give --tiny-autoencoder"):
        run(tmp_path / "odd", chain, monitored, clip=clip, **files)
    files["tiny_autoencoder"] = chain / "teacher" / "tiny_autoencoder.safetensors"
    with caplog.at_level(logging.INFO):
        folder = run(tmp_path / "a", chain, monitored, clip=clip, **files)
    assert "monitor: 20 images, 4 of each of 5 conditions" in caplog.text
    table, metadata = manifests.read_table(folder / NAMES[1])
    assert {SATURATION, SHARPNESS, CLIP, FEATURES, SAME_NOISE} <= set(table.column_names)
    rows = table.to_pylist()
    assert all(math.isfinite(row[CLIP]) for row in rows)
    best = tensor_files.load_metadata(folder / NAMES[0])["best"]
    assert (best["value"], best["update"]) == max((row[CLIP], row["update"] + 1) for row in rows)
    assert metadata["spec"]["clip"] == clip
    num_decoded = len(shown)
    latents = run(
        tmp_path / "b", chain, {**section, "monitor": {**monitor, "decoder": "none", "clip": False, "best": None}}
    )
    table, _ = manifests.read_table(latents / NAMES[1])
    assert SATURATION not in table.column_names and {CONTRAST, FEATURES} <= set(table.column_names)
    assert not any(name.startswith("best") for name in tensor_files.load(latents / NAMES[0])[0])
    assert [{*shown[:num_decoded]}, {*shown[num_decoded:]}] == [{(64, 3, 32, 32)}, {(64, *SHAPE)}]


def test_a_student_of_pairs_is_compared_with_images_of_their_guidance(chain, section, tmp_path):
    """The guidance of the method is of the matching loss, which has no weight."""
    phase = {"updates": 1, "matching_scale": 0.0, "fake_updates": 0}
    monitor = {"num_images": 4, "seeds": 4, "decoder": "none"}
    section = changed(section, phases=[phase], matching_weight=0.0, match_pairs=False) | {"monitor": monitor}
    pages = [run(tmp_path / str(guidance), chain, changed(section, guidance=guidance)) for guidance in (1.0, 3.0)]
    one, other = (manifests.read_table(folder / NAMES[1])[0] for folder in pages)
    assert str(one.to_pylist()) == str(other.to_pylist()) and FEATURES in one.column_names  # NaN differs from itself
