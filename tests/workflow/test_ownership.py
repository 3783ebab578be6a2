"""A target that cannot be made is refused with one message, and shared artifacts are found at their owner's."""

from pathlib import Path

import pytest
import yaml

from tests.workflow.conftest import REPOSITORY, SMALL, snakemake, write_config


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/smal/fid.json", 'error: unknown experiment "smal" (did you mean "small"?)'),
        (
            "results/small-seed1/pairs/manifest.parquet",
            'error: "small-seed1" shares this artifact with "small": ask for results/small/pairs/manifest.parquet',
        ),
        (
            "results/small-seed1/pairs/blocks/00000-00001.parquet",
            'error: "small-seed1" shares this artifact with "small": '
            "ask for results/small/pairs/blocks/00000-00001.parquet",
        ),
    ],
)
def test_target_is_refused_with_one_message(tmp_path: Path, target: str, message: str):
    write_config(tmp_path, SMALL)
    answer = snakemake(tmp_path, "--dry-run", target)
    errors = [line for line in (answer.stdout + answer.stderr).splitlines() if "rror" in line]
    assert answer.returncode != 0 and len(errors) == 1 and errors[0].startswith(message)
    assert not (tmp_path / "results").exists()


def test_configuration_is_refused_before_any_work(tmp_path: Path):
    config = yaml.safe_load(yaml.safe_dump(SMALL))
    config["experiments"]["small"]["distill"]["optimiser"]["learning_rate"] = "5e-5"
    write_config(tmp_path, config)
    answer = snakemake(tmp_path, "--cores", "1", "results/small/fid.json")
    assert answer.returncode != 0 and "'5e-5' is a string to YAML" in answer.stderr
    assert "Traceback" not in answer.stderr and not (tmp_path / "results").exists()


def test_edited_folder_of_images_is_an_input(tmp_path: Path):
    config = yaml.safe_load(yaml.safe_dump(SMALL))
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    dataset = {"kind": "images", "folder": "photos", "resolution": 8, "num_held_out": 1}
    config["experiments"]["small"]["dataset"] = dataset
    write_config(tmp_path, config)
    answer = snakemake(tmp_path, "--dry-run", "results/small/teacher/denoiser.safetensors")
    assert answer.returncode == 0 and "input: photos, photos/cats" in answer.stdout


def test_shipped_default_target_plans_every_stage():
    answer = snakemake(REPOSITORY, "--dry-run", "--forceall", "--quiet", "rules")
    assert answer.returncode == 0, answer.stdout + answer.stderr
