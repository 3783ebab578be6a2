"""Inputs that rules look up: folders of images, and every stage of what is shipped."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dmd.data import manifest
from dmd.provenance import record
from tests.workflow.conftest import (
    ENVIRONMENT,
    REPOSITORY,
    SCRIPT_NAMES,
    SMALL,
    SNAKEMAKE,
    TARGET,
    command,
    edited,
    jobs,
    make,
    snakemake,
    verify,
    write_config,
)
from tests.workflow.photos import PER_CLASS, SCENES, write_photo, write_photos

IMAGES = "results/small/images/manifest.parquet"
TEACHER = "results/small/teacher/denoiser.safetensors"
FUTURE = (4_000_000_000, 4_000_000_000)
CHAIN = {"images", "teacher", "reference", "pairs", "distill", "sample", "features", "evaluate"}


def test_imported_teacher_is_not_made_from_the_dataset(tmp_path: Path):
    write_config(tmp_path, edited({"experiments/small/teacher": {"kind": "edm", "file": "teacher.pkl"}}))
    (tmp_path / "teacher.pkl").touch()
    assert jobs(make(tmp_path, "--dry-run", TEACHER)) == Counter(["teacher"])


def test_image_overwritten_by_an_older_one_reruns_what_was_made_from_it(broken: Path):
    """As tar, cp -p and rsync -a do."""
    image, folder = broken / "photos/dusk/00.png", (broken / "photos/dusk").stat()
    for name in (".DS_Store", "._00.png", "Thumbs.db", "desktop.ini"):
        (broken / "photos/dusk" / name).touch()
    assert jobs(make(broken, "--dry-run", TARGET)) == Counter()
    shutil.copy2(image, broken / "other.png")
    os.utime(broken / "other.png", (0, 0))
    (broken / "other.png").replace(image)
    os.utime(broken / "photos/dusk", ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert set(jobs(make(broken, "--dry-run", TARGET))) >= CHAIN


def test_images_of_the_future_cost_no_work(tmp_path: Path):
    """Snakemake deletes an output that is older than an input."""
    write_photos(tmp_path / "photos")
    write_config(tmp_path, SMALL)
    os.utime(tmp_path / "photos/dusk/00.png", FUTURE)
    os.utime(tmp_path / "photos/labels.csv", FUTURE)
    os.utime(tmp_path / "photos", FUTURE)
    targets = (IMAGES, IMAGES.replace("small", "small-csv"))
    assert jobs(make(tmp_path, "--cores", "1", *targets)) == Counter(["images", "images"])
    assert jobs(make(tmp_path, "--dry-run", *targets)) == Counter()


def test_links_are_followed_and_odd_names_reach_the_stage(tmp_path: Path):
    name = "{word} {} 'it' \"$HOME\" -\n\x1b[2J"
    write_photos(tmp_path / "away")
    (tmp_path / "away/labels.csv").unlink()
    folder = tmp_path / f"-{name}"
    folder.mkdir()
    for each in [path for path in (tmp_path / "away").iterdir() if path.is_dir()]:
        (folder / f"{each.name}{name}").symlink_to(each)
    os.rename(tmp_path / "away/dusk/00.png", os.fsencode(tmp_path / "away/dusk") + b"/\xe9\xff.png")
    (folder / "notes.txt").touch()
    write_config(tmp_path, edited({"experiments/small/dataset/folder": f"-{name}"}))
    make(tmp_path, "--cores", "1", IMAGES)
    facts = manifest.read(tmp_path / IMAGES).metadata["facts"]
    assert facts["num_classes"] == len(SCENES) and sum(last - first for first, last in facts["splits"].values()) == (
        PER_CLASS * len(SCENES)
    )
    assert "1 files passed over: 1 .txt" in (tmp_path / "results/small/logs/images.log").read_text()
    assert jobs(make(tmp_path, "--dry-run", IMAGES)) == Counter()


def test_image_overwritten_between_teacher_and_reference_is_in_neither(broken: Path):
    """Both read the images as they were read once; those who ask for more are told that they changed."""
    image, target = broken / "photos/dusk/00.png", "results/small/reference/reference.safetensors"
    content, score = (broken / target).read_bytes(), (broken / TARGET).read_bytes()
    image.unlink()
    write_photo(image, [9, 9, 9], [99, 99, 99], kind="wide")
    (broken / target).unlink()
    make(broken, "--cores", "1", "--rerun-triggers", "mtime", "--", target, TARGET)
    assert (broken / target).read_bytes() == content and (broken / TARGET).read_bytes() == score


def test_folder_with_results_in_it_is_no_dataset(tmp_path: Path):
    write_config(tmp_path, edited({"experiments/small/dataset/folder": "."}))
    answer = snakemake(tmp_path, "--dry-run", IMAGES)
    errors = [line for line in answer.stderr.splitlines() if "rror" in line]
    assert answer.returncode != 0 and len(errors) == 1
    assert errors[0].startswith("error: small.dataset.folder: . is no folder of images: it ")


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path):
    """Nor does Snakemake, not even if it is the folder of the Snakefile, as it is by default."""
    for name in ("Snakefile", "workflow", "dmd", "profiles", "envs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    stages = ("sitecustomize", "usercustomize", "torch", "numpy", "filelock")
    for name in (*stages, "pydantic", "boto3", "requests", "packaging", "psutil", "multiprocessing", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')")
    write_photos(tmp_path / "photos")
    write_config(tmp_path, SMALL)
    line = [SNAKEMAKE, "--cores", "1", IMAGES]
    answer = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert answer.returncode == 0 and "was imported" not in answer.stdout + answer.stderr
    assert (tmp_path / IMAGES).exists()


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_scripts_import_nothing_from_the_project_folder_but_its_own(name: str, tmp_path: Path):
    shutil.copytree(REPOSITORY / "workflow/scripts", tmp_path / "workflow/scripts")
    (tmp_path / "workflow/python").mkdir()
    (tmp_path / "workflow/python/dmd").symlink_to(REPOSITORY / "dmd")
    for each in ("torch", "numpy", "pydantic", "yaml", "filelock", "tqdm", "requests", "sitecustomize"):
        (tmp_path / f"{each}.py").write_text("raise SystemExit(f'{__file__} was imported')")
    line = [sys.executable, f"workflow/scripts/{name}.py", "--help"]
    answer = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stdout.startswith("usage: "), answer.stderr


def test_job_waits_for_another_process_that_makes_the_same_file(tmp_path: Path):
    """Of a job that failed Snakemake would remove the file that the other has made."""
    write_photos(tmp_path / "photos")
    write_config(tmp_path, SMALL)
    words = command(tmp_path, "--nolock", "--cores", "1", IMAGES)
    with record.exclusive(tmp_path / IMAGES):
        run = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        assert run.stderr is not None and any("another process is writing" in line for line in run.stderr)
    run.communicate()
    assert run.returncode == 0 and record.check(tmp_path / IMAGES)


def test_finished_artifacts_survive_the_files_that_they_were_made_from(broken: Path):
    """A run that needs nothing of them goes on; one that makes the artifact again refuses before it removes it."""
    (broken / "photos").rename(broken / "away")
    assert jobs(make(broken, "--dry-run", TARGET, TEACHER)) == Counter()
    assert verify(broken).returncode == 0
    write_config(broken, edited({"experiments/small/evaluate/neighbours": 4}))
    assert jobs(make(broken, "--dry-run", TARGET)) == Counter(["evaluate", "tables"])
    write_config(broken, edited({"experiments/small/dataset/num_held_out": 4}))
    assert jobs(make(broken, "--dry-run", IMAGES)) == Counter(["missing", "images"])
    write_config(broken, SMALL)
    for words in (["--forcerun", "images"], ["--forceall"]):
        answer = snakemake(broken, "--cores", "1", *words, "--", IMAGES)
        assert answer.returncode == 1 and "error: files are missing\nMissing, to be put there" in answer.stderr
        assert record.check(broken / IMAGES)
    (broken / "away").rename(broken / "photos")
    assert jobs(make(broken, "--dry-run", TARGET)) == Counter()


def test_two_runs_planned_at_once_make_each_file_once(tmp_path: Path):
    """The second waits for the first and is planned again: Snakemake would remove what it was to make by its old plan.

    A run of another experiment does not wait.
    """
    write_photos(tmp_path / "photos")
    write_config(tmp_path, SMALL)
    line = command(tmp_path, "--nolock", "--cores", "1", IMAGES, TEACHER)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, **pipe) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert jobs("\n".join(each.rpartition("waiting for its end")[2] for each in said)) == {"images": 1, "teacher": 1}
    assert "Nothing to be done" in "".join(said) and record.check(tmp_path / IMAGES)
    with record.exclusive(tmp_path / ".snakemake/runs/small"):
        assert jobs(make(tmp_path, "--nolock", "--cores", "1", IMAGES.replace("small", "small-csv"))) == {"images": 1}


def test_shipped_default_target_plans_every_stage():
    answer = snakemake(REPOSITORY, "--dry-run", "--forceall", "--quiet", "rules")
    assert answer.returncode == 0, answer.stdout + answer.stderr
