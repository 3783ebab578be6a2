"""Prompt files in the workflow: made from what the configuration names, shared by those who read the same."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd.data.prompts import Prompts
from tests.workflow.conftest import jobs, make, snakemake, write_config

LAION = {"kind": "laion", "files": [{"file": "one.parquet"}, {"file": "two.parquet"}], "threshold": 6.25}
COCO = {"kind": "coco", "file": "captions.json", "num": 2}
SAMPLE = {"num_samples": 4, "shard_size": 4, "prompts": COCO}
CONFIG = {
    "experiments": {
        "text": {"prompts": LAION, "sample": SAMPLE},
        "low": {"extends": "text", "prompts": {"threshold": 6.0}},
        "seed1": {"extends": "text", "sample": {"first_seed": 4}},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path, CONFIG)
    for name, score in (("one", 6.25), ("two", 6.0)):
        pq.write_table(
            pa.table({"TEXT": [name, "both"], "AESTHETIC_SCORE": [score, 7.0]}), tmp_path / f"{name}.parquet"
        )
    captions = [{"image_id": number, "id": number, "caption": f"caption {number}"} for number in range(3)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": captions}))
    return tmp_path


def read(path: Path) -> list[str]:
    found = Prompts(path)
    return found.rows(range(len(found)))


def test_prompts_and_captions_are_made_and_the_unchanged_ones_shared(folder):
    targets = ["results/text/prompts/prompts.parquet", "results/low/prompts/prompts.parquet"]
    targets.append("results/text/captions/captions.parquet")
    assert jobs(make(folder, "--cores", "1", *targets)) == {"prompts": 2, "captions": 1}
    assert sorted(read(folder / targets[0])) == ["both", "one"]
    assert sorted(read(folder / targets[1])) == ["both", "one", "two"]
    assert len(read(folder / targets[2])) == 2
    answer = snakemake(folder, "--dry-run", "results/seed1/captions/captions.parquet")
    assert answer.returncode != 0 and "ask for results/text/captions/captions.parquet" in answer.stdout + answer.stderr


@pytest.mark.parametrize(("name", "place"), [("two.parquet", "prompts.files[1]"), ("captions.json", "sample.prompts")])
def test_a_missing_file_of_prompts_is_named_before_any_job(folder, name, place):
    (folder / name).unlink()
    target = "prompts/prompts.parquet" if place[0] == "p" else "captions/captions.parquet"
    answer = snakemake(folder, "--cores", "1", f"results/text/{target}")
    assert answer.returncode != 0 and f"  {name}\n" in answer.stderr and f"named by: text.{place}.file" in answer.stderr
