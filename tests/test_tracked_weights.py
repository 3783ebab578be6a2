"""Trained weights in the repository: their size, their digests, and that they do what they are for."""

from pathlib import Path

import pandas

from dmd.config import Experiments, load
from dmd.importers import clip_files
from dmd.provenance import tensor_files
from dmd.stages import teacher

RESOURCES = Path(__file__).parents[1] / "workflow" / "resources"


def test_all_weights_together_have_at_most_25_megabytes():
    sizes = [path.stat().st_size for path in RESOURCES.rglob("*.safetensors")]
    assert sizes and sum(sizes) <= 25e6


def test_teacher_of_emoji_is_the_one_that_the_configuration_pins(tmp_path):
    section = Experiments(load(RESOURCES.parents[1] / "config.yaml")).section("emoji", "teacher")
    folder = RESOURCES / "emoji" / "teacher"
    assert Path(section.folder).resolve() == folder
    teacher.run(
        output=tmp_path / "denoiser.safetensors",
        table=tmp_path / "log.parquet",
        kind="stable-diffusion",
        source=folder,
        sha256=section.sha256,
    )
    facts = tensor_files.load_metadata(tmp_path / "denoiser.safetensors")
    assert facts["source_sha256"] == section.sha256 and facts["preconditioning"]["prediction"] == "v"
    assert facts["shape"] == [4, 16, 16] and facts["image_shape"] == [3, 64, 64]


def test_judge_of_emoji_is_the_one_that_the_configuration_pins_and_knows_the_held_out_captions():
    section = Experiments(load(RESOURCES.parents[1] / "config.yaml")).section("emoji", "evaluate").clip
    judge, identity, _ = clip_files.load(Path(section.folder), sha256=section.sha256)
    assert identity["pinned"] and Path(section.folder).resolve() == RESOURCES / "emoji" / "judge"
    rows = pandas.read_csv(RESOURCES / "emoji" / "captions.csv", keep_default_na=False)
    asked = rows[rows.split == "held_out"].iloc[::8]
    known = rows[rows.split == "training"].groupby("codepoint").caption.first()
    nearest = (judge.texts([*asked.caption]) @ judge.texts([*known]).T).argmax(1)
    assert (known.index[nearest.numpy()] == asked.codepoint).mean() > 0.8
