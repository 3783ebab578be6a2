"""A table shows rows with `run: false` where their scores are there, and never starts their experiments."""

import json
from pathlib import Path

from tests.workflow.conftest import REPOSITORY, edited, jobs, make, snakemake, write_config

TABLE = "results/tables/demo.md"
ROWS = [{"label": "small", "experiments": ["small"], "run": False}]


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
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    fields = {"experiment": "small", "metric": "fid", "value": 2.0, "values": [2.0], "network_calls": 1}
    fields |= {"floor": {"mean": 0.5, "std": 0.1, "num": 2}}
    fields |= {"features": {"name": "inception", "sha256": "f"}, "reference": {"name": "moments", "sha256": "r"}}
    (folder / "fid.json").write_text(json.dumps(fields))
    answer = make(tmp_path, "--cores", "1", TABLE)
    assert jobs(answer) == {"tables": 1}
    assert "| small | moments | fid | 2.00 |" in (tmp_path / TABLE).read_text()


def test_shipped_tables_of_the_paper_start_no_job_of_theirs():
    answer = snakemake(REPOSITORY, "--dry-run", *(f"results/tables/{name}.md" for name in ("table1", "table6")))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(jobs(answer.stdout)) == {"tables"}
