"""Snakemake over thousands of jobs: dry runs of what is shipped and of 10,000 shards, near-empty jobs, and a no-op."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from dmd.config import read_yaml

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
NUM_SHARDS = 10_000
PER_JOB = 6  # shards: 1,667 jobs of pairs
SECONDS, CORES = 1.0, 8  # of a near-empty job, and how many at a time
EMPTY = """() {
  sleep ${DMD_JOB_SECONDS};
  while [ $# -gt 0 ]; do
    case "$1" in --output|--table|--fid|--kid|--prdc|--classes|--memorisation) : > "$2";; esac;
    shift;
  done
}"""  # what stands for `python` in the shell of a job: it makes empty artifacts


def measure(folder: Path, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Jobs, seconds and MiB of each; `seconds` is what one job of the run takes."""
    put_inputs(folder)
    found: dict[str, Any] = {}
    targets = ["results/sd15-cfg8/fid.json", "results/sd15-cfg8/clip.json"]
    found["dry_run_sd15_cfg8"] = snakemake(folder, "--dry-run", *targets)
    found["dry_run_10000_shards"] = snakemake(folder, "--dry-run", "results/many/fid.json")
    target = "results/many/pairs/manifest.parquet"
    run = snakemake(folder, "--cores", str(CORES), target, seconds=seconds)
    least = run["jobs"] * seconds / CORES
    found["run"] = {**run, "seconds_of_a_job": seconds, "at_a_time": CORES, "seconds_of_jobs_alone": round(least, 1)}
    found["run"]["over_jobs_alone"] = round(run["seconds"] / least, 3)
    found["no_op"] = snakemake(folder, "--cores", str(CORES), target)
    return found


def snakemake(folder: Path, *words: str, seconds: float = 0.0) -> dict[str, Any]:
    """Runs Snakemake on the repository's rules and default profile, with empty jobs; it has to succeed."""
    command = [str(SNAKEMAKE), "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), *words]
    environment = {**os.environ, "BASH_FUNC_python%%": EMPTY, "DMD_JOB_SECONDS": str(seconds)}
    said, begin = folder / "snakemake.out", time.monotonic()
    with open(said, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = said.read_text()
    if process.returncode:
        raise RuntimeError(f"snakemake ended with {process.returncode}\n{text[-2000:]}")
    jobs = len(re.findall(r"^(?:local)?rule \w+:$", text, re.M))
    took = {"seconds": round(time.monotonic() - begin, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}
    return {"jobs": jobs, **took, "peak_mib": round(usage.ru_maxrss / 1024)}


def put_inputs(folder: Path) -> None:
    """The shipped configuration with an experiment of many shards, and empty files where sd15-cfg8 wants its own."""
    config = read_yaml(ROOT / "config.yaml")
    pairs = {"num_pairs": NUM_SHARDS * 4, "shard_size": 4, "shards_per_job": PER_JOB}
    config["experiments"]["many"] = {"extends": "digits", "pairs": {**pairs, "first_seed": 2**30}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    shared, last = config["experiments"]["sd15-cfg3"], config["experiments"]["sd15-cfg8"]
    weights = shared["reference"]["features"]["file"], shared["distill"]["regression_distance"]["file"]
    paths = [*(each["file"] for each in last["prompts"]["files"]), shared["sample"]["prompts"]["file"], *weights]
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        paths += [f"{shared['teacher']['folder']}/{part}/{name}" for name in ("config.json", "model.safetensors")]
    paths += [f"{shared['teacher']['tiny_autoencoder']['folder']}/model.safetensors"]
    paths += [f"{shared['evaluate']['clip']['folder']}/model.safetensors", f"{shared['dataset']['folder']}/0.jpg"]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    features = config["experiments"]["digits"]["reference"]["features"]["file"]
    (folder / features).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / features, folder / features)
