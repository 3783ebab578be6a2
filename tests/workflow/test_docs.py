"""Commands of README.md and docs/ that cost little: dry runs of Snakemake, and programs that say what they take."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import pages
from tests.workflow import snakemake_forks
from tests.workflow.conftest import ENVIRONMENT, REPOSITORY, SCRIPT_NAMES, SNAKEMAKE

SHARED = ("Snakefile", "dmd", "envs", "profiles")
PROGRAM = re.compile(r"(?:^|\s|/)python (-m [\w.]+|[\w/]+\.py)")
TESTED = {  # elsewhere
    "-m dmd.config.schema",  # takes nothing; tests/config compares what it writes
    "-m dmd.config.reference_page",  # as well
    *(f"workflow/scripts/{name}.py" for name in SCRIPT_NAMES),  # in test_inputs.py
}


def commands() -> dict[str, set[str]]:
    """Files that Snakemake is asked for, by the other words of the command."""
    found: dict[str, set[str]] = {}
    for line in (line for page in pages.PAGES for line in pages.code(page)):
        if line.startswith(".venv/bin/snakemake "):
            words = [word for word in shlex.split(line, comments=True)[1:] if word != "-n"]
            files = {word for word in words if word.startswith("results/")}
            if files:
                found.setdefault(shlex.join(word for word in words if word not in files), set()).update(files)
    return found


def programs() -> list[str]:
    """Modules and scripts that are run with python, but those of `TESTED`."""
    found = {name for page in pages.PAGES for line in pages.code(page) for name in PROGRAM.findall(line)}
    return sorted(found - TESTED)


def put(path: Path) -> None:
    """An empty file in place of one that is large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def put_all(folder: Path, value: Any) -> None:
    """Empty files in place of all that a configuration names."""
    if isinstance(value, list):
        for each in value:
            put_all(folder, each)
    if isinstance(value, dict):
        if isinstance(value.get("file"), str) and "url" not in value and not (folder / value["file"]).exists():
            put(folder / value["file"])
        if isinstance(value.get("folder"), str):
            for name in ("config.json", "model.safetensors", "one/1.png", "two/2.png"):
                put(folder / value["folder"] / name)
        for each in value.values():
            put_all(folder, each)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the examples of the pages, and files in place of those that somebody brings."""
    copy = tmp_path_factory.mktemp("repository")
    for name in SHARED:
        (copy / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "workflow", copy / "workflow")  # a copy, since it gets files
    whole = pages.configuration() | {"storage": None}
    (copy / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    put_all(copy, whole)
    return copy


@pytest.mark.parametrize(("options", "files"), commands().items(), ids=commands())
def test_snakemake_can_make_what_it_is_asked_for(folder: Path, options: str, files: set[str]):
    line = [str(SNAKEMAKE), "-n", *sorted(files), *shlex.split(options)]
    answer = snakemake_forks.run(line, folder, ENVIRONMENT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert files <= set(re.findall(r"results/[^\s,]+", answer.stdout))


def test_pages_have_such_commands():
    assert {"results/digits/fid.json", "results/shapes/fid.json"} <= commands()["--cores all"]
    assert "-m dmd.status" in programs()


@pytest.mark.parametrize("program", programs())
def test_programs_say_what_they_take(program: str):
    line = [sys.executable, *program.split(), "--help"]
    answer = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, cwd=REPOSITORY)
    assert answer.returncode == 0 and answer.stdout.startswith("usage: "), answer.stdout + answer.stderr
