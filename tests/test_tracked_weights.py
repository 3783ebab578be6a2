"""Trained weights in the repository stay small."""

from pathlib import Path

from dmd.config import Experiments, load
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
