"""The workflow is in good form, and its environments agree."""

import re
from pathlib import Path

import yaml

from tests.workflow.conftest import REPOSITORY, SMALL, snakemake, write_config


def test_snakemake_finds_nothing_to_improve(tmp_path: Path):
    write_config(tmp_path, SMALL)
    answer = snakemake(tmp_path, "--lint")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_conda_environment_has_the_pins_of_pip():
    lines = (REPOSITORY / "envs" / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    environment = yaml.safe_load((REPOSITORY / "envs" / "dmd.yaml").read_text())
    assert [entry for entry in environment["dependencies"] if isinstance(entry, dict)] == [{"pip": pins}]
