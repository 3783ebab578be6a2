"""A small experiment, run once for real; tests edit its configuration and look at what a dry run would do."""

import copy
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SMALL: dict[str, Any] = {
    "experiments": {
        "small": {
            "device": "cpu",
            "dataset": {
                "kind": "gaussian-mixture",
                "means": [[-1.0, 0.0], [1.0, 0.0]],
                "stds": [0.2, 0.2],
                "weights": [0.5, 0.5],
                "num_training": 64,
                "num_held_out": 64,
            },
            "teacher": {
                "kind": "train",
                "network": {"kind": "mlp", "width": 8, "layers": 1},
                "training": {"updates": 3, "batch_size": 8, "learning_rate": 0.001},
            },
            "reference": {"features": {"kind": "coordinates"}, "floor_splits": 2},
            "pairs": {"num_pairs": 8, "shard_size": 4, "shards_per_job": 2, "solver": {"name": "heun", "steps": 2}},
            "distill": {
                "matching_batch_size": 4,
                "regression_batch_size": 4,
                "optimiser": {"warmup": 1},
                "phases": [{"updates": 3}],
            },
            "sample": {"num_samples": 32, "shard_size": 32},
            "evaluate": {"neighbours": 3},
        },
        "small-seed1": {"extends": "small", "distill": {"seed": 1}, "sample": {"first_seed": 1000}},
    },
    "tables": {"demo": {"rows": [{"label": "small", "experiments": ["small"]}]}, "table2": {"rows": []}},
}
SMALL["tables"]["table2"] = copy.deepcopy(SMALL["tables"]["demo"])
TARGET = "results/tables/demo.md"


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Snakemake with the repository's rules on the configuration in `folder`."""
    command = [str(SNAKEMAKE), "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml into `folder`."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the table of `small` is made."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, SMALL)
    answer = snakemake(folder, "--cores", "2", TARGET)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder


@pytest.fixture
def planned(finished: Path) -> Callable[..., Counter[str]]:
    """Jobs by rule that a dry run lists after keys of the configuration were edited."""

    def plan(edits: dict[str, Any], target: str = TARGET) -> Counter[str]:
        config = copy.deepcopy(SMALL)
        for place, value in edits.items():
            *path, key = place.split("/")
            section = config
            for name in path:
                section = section[name]
            section[key] = value
        write_config(finished, config)
        answer = snakemake(finished, "--dry-run", target)
        write_config(finished, SMALL)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return Counter(re.findall(r"^(?:local)?rule (\w+):$", answer.stdout + answer.stderr, re.M))

    return plan
