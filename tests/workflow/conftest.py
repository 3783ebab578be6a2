"""A small experiment on a folder of pictures, run once for real; tests look at it, edit it, or break a copy."""

import contextlib
import copy
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from filelock import FileLock

import dmd.verify
from tests.workflow import snakemake_forks
from tests.workflow.photos import write_photos

REPOSITORY = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL: dict[str, Any] = {
    "experiments": {
        "small": {
            "device": "cpu",
            "dataset": {
                "kind": "images",
                "folder": "photos",
                "labels": "folders",
                "resolution": 8,
                "num_held_out": 6,
            },
            "teacher": {
                "kind": "train",
                "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
                "training": {
                    "method": {"name": "denoising", "batch_size": 16, "phases": [{"updates": 40}]},
                    "optimisers": {"student": {"learning_rate": 0.004, "weight_decay": 0.0, "gradient_clip": 1.0}},
                    "schedule": {"warmup": 0},
                    "ema_decay": 0.8,
                },
            },
            "reference": {
                "features": {"kind": "pixels", "size": 2},
                "protocol": {"quantise": 256},
                "floor_draws": 2,
            },
            "pairs": {
                "num_pairs": 16,
                "shard_size": 4,
                "shards_per_job": 2,
                "batch_size": 16,
                "solver": {"name": "heun", "steps": 18},
            },
            "distill": {
                "method": {
                    "name": "dmd",
                    "matching_batch_size": 4,
                    "regression_batch_size": 4,
                    "phases": [
                        {"updates": 20, "matching_scale": 0.0, "fake_updates": 0},
                        {"updates": 10, "train": "fake"},
                        {"updates": 30, "fake_updates": 2},
                    ],
                },
                "optimisers": {"student": {"learning_rate": 0.001}},
                "schedule": {"warmup": 2, "decay": "cosine"},
                "monitor": {"every": 10, "num_images": 8, "seeds": 4},
                "ema_decay": 0.9,
                "checkpoint_every": 5,
            },
            "sample": {"num_samples": 32, "shard_size": 16, "shards_per_job": 2, "batch_size": 16},
            "evaluate": {"neighbours": 3},
        },
        "small-seed1": {"extends": "small", "distill": {"seed": 1}, "sample": {"first_seed": 1000}},
        "small-csv": {"extends": "small", "dataset": {"labels": "photos/labels.csv"}},
    },
    "tables": {"demo": {"rows": [{"label": "small", "experiments": ["small"]}]}, "table2": {"rows": []}},
}
SMALL["tables"]["table2"] = copy.deepcopy(SMALL["tables"]["demo"])
TARGET = "results/tables/demo.md"
CSV_IMAGES = "results/small-csv/images"
SCRIPT_NAMES = ("prune", "cost", "plan", "memory", "store")  # of workflow/scripts, which people start
COMPARED = (".safetensors", ".tar", ".parquet", ".json", ".md", ".csv", ".png")


def command(folder: Path, *words: str) -> list[str]:
    """Snakemake with the repository's rules and profile on the configuration in `folder`."""
    places = ["--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder)]
    return [str(SNAKEMAKE), *places, "--workflow-profile", str(REPOSITORY / "profiles" / "default"), *words]


def snakemake(
    folder: Path, *words: str, own_process: bool = False, seconds: int = 0, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Runs `command` and waits.

    Args:
        own_process: start Snakemake as users do; else, and without `settings`, it and its stages are forks.
        seconds: after which a fork ends; 0 = never.
        settings: of subprocess.run.
    """
    line = command(folder, *words)
    if not own_process and not settings:
        return snakemake_forks.run(line, folder, ENVIRONMENT, seconds=seconds)
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, cwd=folder, **settings)


def called(main: Callable[[], None], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What a program with this `main` says and returns in `folder`, called in this process."""
    line, said, told, code = [main.__module__, *words], io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(folder), mock.patch.object(sys, "argv", line):
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            try:
                main()
            except SystemExit as ended:
                message = f"{ended.code}\n" if isinstance(ended.code, str) else ""
                code = 1 if message else int(ended.code or 0)
                told.write(message)
    return subprocess.CompletedProcess(line, code, said.getvalue(), told.getvalue())


def verify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What `python -m dmd.verify results` says in `folder`."""
    return called(dmd.verify.main, folder, "results", *words)


def make(folder: Path, *words: str, own_process: bool = False) -> str:
    """Runs `snakemake`, which must succeed; all it said."""
    answer = snakemake(folder, *words, own_process=own_process)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def jobs(output: str) -> Counter[str]:
    """Jobs by rule that a run or a dry run names, the target's own apart."""
    found = re.findall(r"^(?:local)?rule (\w+):$", output, re.M)
    return Counter(rule for rule in found if rule != "all")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every artifact and record below results/, by relative path; logs and measured times are left out."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(results.rglob("*"))
        if path.suffix in COMPARED and not {"logs", "benchmarks"} & set(path.parts) and "latency" not in path.name
    }


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml into `folder`."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def copy_run(source: Path, target: Path) -> None:
    """Copies a folder with its results; its photos are hard links, since another inode would rerun what reads them."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("photos"))
    shutil.copytree(source / "photos", target / "photos", copy_function=os.link)


def edited(edits: dict[str, Any]) -> dict[str, Any]:
    """The small configuration with other values at `section/section/key`."""
    config = copy.deepcopy(SMALL)
    for place, value in edits.items():
        *path, key = place.split("/")
        section = config
        for name in path:
            section = section[name]
        section[key] = value
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder in which the default target is made, two jobs at a time; left as it is found.

    Of several processes of pytest one makes it, and each has a copy.
    """
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    made, folder = shared / "made", tmp_path_factory.mktemp("finished")
    with FileLock(shared / "made.lock"):
        if not (shared / "made.whole").exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            write_config(made, SMALL)
            write_photos(made / "photos")
            make(made, "--cores", "2", "all", f"{CSV_IMAGES}/manifest.parquet", own_process=True)
            (shared / "made.whole").touch()
    copy_run(made, folder)
    return folder


@pytest.fixture
def broken(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, to be damaged; its photos are to be replaced, not written into."""
    copy_run(finished, tmp_path)
    return tmp_path


@pytest.fixture
def planned(finished: Path) -> Callable[..., Counter[str]]:
    """Jobs by rule that a dry run lists after keys of the configuration were edited."""

    def plan(edits: dict[str, Any], target: str = TARGET) -> Counter[str]:
        write_config(finished, edited(edits))
        answer = snakemake(finished, "--dry-run", target)
        write_config(finished, SMALL)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return jobs(answer.stdout + answer.stderr)

    return plan
