"""A table shows rows with `run: false` where their scores are there, and never starts their experiments."""

import json
import os
import re
from pathlib import Path

from tests.workflow.conftest import REPOSITORY, edited, jobs, make, snakemake, write_config

TABLE = "results/tables/demo.md"
ROWS = [{"label": "small", "experiments": ["small"], "run": False}]


def score(folder: Path, *, value: float) -> None:
    """Writes the score of experiment small."""
    fields = {"experiment": "small", "metric": "fid", "value": value, "values": [value], "network_calls": 1}
    fields |= {"floor": {"mean": 0.5, "std": 0.1, "num": 2}}
    fields |= {"features": {"name": "inception", "sha256": "f"}, "reference": {"name": "moments", "sha256": "r"}}
    path = folder / "results" / "small" / "fid.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def test_table_of_nothing_that_was_run_starts_nothing(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    write_config(tmp_path, edited({"tables/demo/rows": ROWS, "tables/demo/paper": "table1"}))
    assert jobs(make(tmp_path, "--dry-run", "all")) == {"tables": 1}
    make(tmp_path, "--cores", "1", "all")
    text = (tmp_path / TABLE).read_text()
    assert "BigGAN-deep" in text and "| small | - |" in text


def test_score_that_is_there_is_shown_and_its_experiment_not_run_again(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    write_config(tmp_path, edited({"tables/demo/rows": ROWS}))
    score(tmp_path, value=2.0)
    answer = make(tmp_path, "--cores", "1", TABLE)
    assert jobs(answer) == {"tables": 1}
    assert "| small | moments | fid | 2.00 |" in (tmp_path / TABLE).read_text()


def test_score_older_than_what_it_was_made_from_is_shown_and_its_experiment_not_run_again(tmp_path: Path):
    write_config(tmp_path, edited({"tables/demo/rows": ROWS}))
    score(tmp_path, value=2.0)
    files = ["teacher/denoiser.safetensors", "reference/reference.safetensors", "pairs/manifest.parquet"]
    files += ["distill/generator.safetensors", "distill/log.parquet", "samples/blocks/00000-00001.parquet"]
    files += ["features/00000-00001.safetensors", "kid.json", "prdc.json", "memorisation.json", "fid.json"]
    for path in (tmp_path / "results" / "small" / name for name in files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path.name in ("kid.json", "prdc.json"):
            path.write_text(json.dumps({"experiment": "small", "value": None, "recall": None, "first_seeds": [0]}))
        os.utime(path, (1e9, 1e9))
    (tmp_path / "photos").mkdir()  # newer than all of them
    assert jobs(make(tmp_path, "--cores", "1", TABLE)) == {"tables": 1}
    assert jobs(make(tmp_path, "--dry-run", TABLE)) == {}
    score(tmp_path, value=3.0)
    assert jobs(make(tmp_path, "--cores", "1", TABLE)) == {"tables": 1}
    assert "| small | moments | fid | 3.00 |" in (tmp_path / TABLE).read_text()


def test_shipped_tables_of_the_paper_start_no_job_of_theirs():
    answer = snakemake(REPOSITORY, "--dry-run", "-p", *(f"results/tables/{name}.md" for name in ("table1", "table6")))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(jobs(answer.stdout)) == {"tables"}
    (spec,) = re.findall(r"--spec '(.*?CIFAR-10 \(the paper.*?)' --log", answer.stdout)
    teachers = {row["label"]: row["teacher"] for row in json.loads(spec.replace("'\"'\"'", "'"))["rows"]}
    assert teachers["DMD, unconditional"] == teachers["EDM, unconditional, 35 calls"] == "cifar10-uncond"
    assert teachers["DMD, conditional"] == teachers["EDM, conditional, 35 calls"] == "cifar10-cond"
