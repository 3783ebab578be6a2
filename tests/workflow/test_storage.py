"""Storage through the rules: it makes nothing anew, and another folder takes what was drawn in the first."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import s3_server
from tests.workflow import conftest
from tests.workflow.conftest import REPOSITORY, TARGET, edited, jobs, make, snakemake, verify, write_config

MANIFEST = "results/small/pairs/manifest.parquet"
GENERATOR = "results/small/distill/generator.safetensors"


@pytest.fixture
def storage(monkeypatch):
    """Section `storage` of a configuration, for a bucket that is empty."""
    with s3_server.serving() as server:
        for name, value in s3_server.CREDENTIALS.items():
            monkeypatch.setitem(conftest.ENVIRONMENT, name, value)
        yield {"prefix": "s3://bucket/folder", "endpoint": server.endpoint, "keep": False, "cache_gb": 1}


def script(folder: Path, name: str, *words: str) -> str:
    """What a script of the workflow prints."""
    line = [sys.executable, str(REPOSITORY / "workflow" / "scripts" / name), *words]
    answer = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=conftest.ENVIRONMENT)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_storage_named_later_makes_nothing_anew(planned: Callable[..., Counter[str]]):
    place: dict[str, Any] = {"prefix": "s3://bucket/folder", "endpoint": "http://127.0.0.1:9", "keep": False}
    assert planned({"storage": place}) == Counter()


def test_finished_pairs_are_copied_and_nothing_is_made_anew(broken: Path, storage):
    write_config(broken, edited({"storage": storage}))
    before = (broken / MANIFEST).read_bytes()
    assert "00000-00001.parquet: 2 shards copied to s3://bucket/folder" in script(broken, "store.py", "small")
    assert not list((broken / "results/small/pairs").glob("*.tar"))
    answer = snakemake(broken, "--dry-run", TARGET)
    assert jobs(answer.stdout + answer.stderr) == Counter() and (broken / MANIFEST).read_bytes() == before
    checked = verify(broken)
    assert checked.returncode == 0 and "4 files are only there" in checked.stdout
    assert "0 files" in script(broken, "prune.py")


@pytest.mark.slow
def test_pairs_drawn_in_one_folder_are_distilled_in_another(finished: Path, broken: Path, tmp_path_factory, storage):
    other = tmp_path_factory.mktemp("other")
    for folder in (broken, other):
        write_config(folder, edited({"storage": storage}))
    shutil.rmtree(broken / "results/small/pairs")
    make(broken, "--cores", "2", MANIFEST)
    assert (broken / MANIFEST).read_bytes() == (finished / MANIFEST).read_bytes()
    assert not list((broken / "results/small/pairs").glob("*.tar"))

    shutil.copytree(finished / "photos", other / "photos")
    shutil.copytree(finished / "results/small/teacher", other / "results/small/teacher")
    assert "2 blocks of pairs are in s3://bucket/folder" in script(other, "plan.py", "small")
    done = jobs(make(other, "--cores", "2", GENERATOR))
    assert done == Counter(pairs=2, pairs_manifest=1, distill=1)
    assert "2 shards were drawn before" in (other / "results/small/logs/pairs-00000-00001.log").read_text()
    assert (other / GENERATOR).read_bytes() == (finished / GENERATOR).read_bytes()
    assert not list((other / "results").rglob("*.tar")) and len(list((other / ".cache/shards").glob("*.tar"))) == 4
