"""The paper's experiments as shipped: what a run of each would fetch and make."""

import re
import subprocess
import sys

import pytest

from dmd.config import read_file
from tests.workflow.conftest import REPOSITORY, jobs, snakemake

INPUTS = read_file(REPOSITORY / "config.yaml")["inputs"]
SHARED = ("inception", "vgg16")
EXPERIMENTS = {  # experiment -> its own inputs, jobs of pairs
    "imagenet64": (("edm-imagenet64", "imagenet64-moments"), 25),
    "cifar10-cond": (("edm-cifar10-cond", "cifar10-moments"), 10),
    "cifar10-uncond": (("edm-cifar10-uncond", "cifar10-moments"), 50),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_dry_run_lists_the_missing_files_and_every_job(experiment):
    own, pairs = EXPERIMENTS[experiment]
    answer = snakemake(REPOSITORY, "--dry-run", f"results/{experiment}/fid.json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    fetched = re.findall(r"^(?:local)?rule fetch:.*?^    output: (\S+)", answer.stdout, re.M | re.S)
    missing = {INPUTS[name]["file"] for name in (*own, *SHARED)}
    assert set(fetched) == {file for file in missing if not (REPOSITORY / file).exists()}
    found = jobs(answer.stdout)
    made = {rule: number for rule, number in found.items() if rule != "fetch"}
    blocks = made.pop("sample")
    assert made.pop("features") == blocks and made.pop("pairs") == pairs
    if experiment == "cifar10-uncond":  # its reference is that of cifar10-cond: the same moments
        assert "results/cifar10-cond/reference/reference.safetensors" in answer.stdout
    assert made == dict.fromkeys(("teacher", "reference", "pairs_manifest", "distill", "evaluate"), 1)
    assert sum(found.values()) < 2000


def test_plan_says_what_it_cannot_know():
    command = [sys.executable, str(REPOSITORY / "workflow" / "scripts" / "plan.py"), "imagenet64"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rows = {line.split()[0]: line.split() for line in answer.stdout.splitlines() if line}
    size = 25000 * 512 * (2 * (1 + 97) + 2) / 2**20
    assert rows["pairs"][1:] == ["25", f"{25000 * 511:,}", "unknown", f"{size:.1f}", "MiB"] and ">=" in rows["fetch"]
