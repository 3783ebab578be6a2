"""Published moments and the Inception network in the rules: what runs, and what is refused."""

from pathlib import Path
from typing import Any

from tests.workflow.conftest import edited, jobs, snakemake, write_config

EDITS: dict[str, Any] = {
    "experiments/small/reference/features": {"kind": "inception", "file": "inception.pth"},
    "experiments/small/reference/moments": {"file": "moments.npz"},
}


def folder(path: Path) -> Path:
    """A folder in which pictures, moments and weights seem to be in place."""
    write_config(path, edited(EDITS))
    (path / "photos").mkdir()
    for name in ("inception.pth", "moments.npz"):
        (path / name).touch()
    return path


def test_reference_of_moments_reads_the_file_and_no_pictures(tmp_path: Path):
    answer = snakemake(folder(tmp_path), "--dry-run", "-p", "results/small/reference/reference.safetensors")
    assert jobs(answer.stdout) == {"reference": 1}, answer.stdout + answer.stderr
    assert all(flag in answer.stdout for flag in ("--network inception.pth ", "--statistics moments.npz "))
    assert "photos" not in answer.stdout and "--images" not in answer.stdout


def test_inception_score_uses_the_features_of_the_distance(tmp_path: Path):
    targets = ("results/small/fid.json", "results/small/inception_score.json")
    answer = snakemake(folder(tmp_path), "--dry-run", *targets)
    found = jobs(answer.stdout)
    assert found["features"] == found["inception_score"] == found["evaluate"] == 1, answer.stdout + answer.stderr
    write_config(tmp_path, edited({}))
    answer = snakemake(tmp_path, "--dry-run", targets[1])
    assert answer.returncode and "an Inception Score needs kind inception, not pixels" in answer.stdout + answer.stderr
