"""Inputs that rules look up: folders of images, and every stage of what is shipped."""

from pathlib import Path

from tests.workflow.conftest import REPOSITORY, edited, snakemake, write_config


def test_edited_folder_of_images_is_an_input(tmp_path: Path):
    (tmp_path / "animals" / "cats").mkdir(parents=True)
    write_config(tmp_path, edited({"experiments/small/dataset/folder": "animals"}))
    answer = snakemake(tmp_path, "--dry-run", "results/small/teacher/denoiser.safetensors")
    assert answer.returncode == 0 and "input: animals, animals/cats" in answer.stdout


def test_shipped_default_target_plans_every_stage():
    answer = snakemake(REPOSITORY, "--dry-run", "--forceall", "--quiet", "rules")
    assert answer.returncode == 0, answer.stdout + answer.stderr
