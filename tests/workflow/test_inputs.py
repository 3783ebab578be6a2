"""Inputs that rules look up: folders of images, and every stage of what is shipped."""

import os
from collections import Counter
from pathlib import Path

from tests.workflow.conftest import REPOSITORY, TARGET, edited, jobs, make, snakemake, write_config
from tests.workflow.photos import write_photo


def test_edited_folder_of_images_is_an_input(tmp_path: Path):
    (tmp_path / "animals" / "cats").mkdir(parents=True)
    write_config(tmp_path, edited({"experiments/small/dataset/folder": "animals"}))
    answer = snakemake(tmp_path, "--dry-run", "results/small/teacher/denoiser.safetensors")
    assert answer.returncode == 0 and "input: animals, animals/cats" in answer.stdout


def test_imported_teacher_is_not_made_from_the_dataset(tmp_path: Path):
    write_config(tmp_path, edited({"experiments/small/teacher": {"kind": "edm", "file": "teacher.pkl"}}))
    (tmp_path / "teacher.pkl").touch()
    answer = make(tmp_path, "--dry-run", "results/small/teacher/denoiser.safetensors")
    assert "input: teacher.pkl\n" in answer and "photos" not in answer


def test_image_overwritten_in_place_reruns_what_was_made_from_it(broken: Path):
    image, folder = broken / "photos/dusk/00.png", (broken / "photos/dusk").stat()
    assert jobs(make(broken, "--dry-run", TARGET)) == Counter()
    write_photo(image, [9, 9, 9], [99, 99, 99], kind="wide")
    assert (broken / "photos/dusk").stat().st_mtime_ns == folder.st_mtime_ns
    assert {"teacher", "reference", "pairs", "distill", "evaluate"} <= set(jobs(make(broken, "--dry-run", TARGET)))


def test_image_overwritten_between_teacher_and_reference_is_in_neither(broken: Path):
    """Both read the images as they were read once."""
    image, target = broken / "photos/dusk/00.png", "results/small/reference/reference.safetensors"
    content, score = (broken / target).read_bytes(), (broken / TARGET).read_bytes()
    write_photo(image, [9, 9, 9], [99, 99, 99], kind="wide")
    os.utime(image, (0, 0))  # as old as can be: Snakemake sees nothing
    (broken / target).unlink()
    make(broken, "--cores", "1", target, TARGET)
    assert (broken / target).read_bytes() == content and (broken / TARGET).read_bytes() == score


def test_shipped_default_target_plans_every_stage():
    answer = snakemake(REPOSITORY, "--dry-run", "--forceall", "--quiet", "rules")
    assert answer.returncode == 0, answer.stdout + answer.stderr
