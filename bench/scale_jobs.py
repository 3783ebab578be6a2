"""Snakemake with thousands of jobs: dry runs of sd15-cfg8 and of 10,000 shards, a run of near-empty jobs, a no-op."""

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

from bench import clock
from dmd.config import read_file

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SHARDS = {"many": 10_000, "more": 12_000}  # shards of pairs of the experiments for the dry run and for the run
PER_JOB = 6  # shards per job, which gives 1,667 and 2,000 jobs of pairs
SECONDS, CORES = 2.0, 8  # duration of a near-empty job, and number of jobs at a time
MOST_JOBS, MOST_SECONDS, MOST_MIB = 1999, 15.0, 953  # targets of a dry run: under 2,000 jobs, 15 s, 1 GB
MOST_OVER_JOBS = 1.5  # target of the run: its time, divided by the time that its jobs alone take
EMPTY = """() {
  sleep ${DMD_JOB_SECONDS};
  while [ $# -gt 0 ]; do
    case "$1" in --output|--table|--fid|--kid|--prdc|--classes|--memorisation) : > "$2";; esac;
    shift;
  done
}"""  # replaces `python` in the shell of a job: makes empty artifacts


def measure(folder: Path, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Jobs, seconds and MiB of each call of Snakemake, and targets; `seconds`: duration of a near-empty job."""
    put_inputs(folder)
    figures: dict[str, Any] = {}
    wanted = ["results/sd15-cfg8/fid.json", "results/sd15-cfg8/clip.json"]
    figures["dry_run_sd15_cfg8"] = snakemake(folder, "--dry-run", *wanted)
    figures["dry_run_10000_shards"] = snakemake(folder, "--dry-run", "results/many/fid.json")
    target = "results/more/pairs/manifest.parquet"
    run = snakemake(folder, "--cores", str(CORES), target, seconds=seconds)
    least = run["jobs"] * seconds / CORES
    figures["run"] = {**run, "seconds_of_a_job": seconds, "at_a_time": CORES, "seconds_of_jobs_alone": round(least, 1)}
    figures["run"]["over_jobs_alone"] = round(run["seconds"] / least, 3)
    figures["no_op"] = snakemake(folder, "--cores", str(CORES), target)
    return figures | {"targets": targets(figures)}


def targets(figures: dict[str, Any]) -> dict[str, Any]:
    """Targets by figure, and whether they are met."""
    plans = [name for name in figures if name.startswith("dry_run")]
    judged = {f"{name}.jobs": clock.target(figures[name]["jobs"], most=MOST_JOBS) for name in plans}
    for name in (*plans, "no_op"):
        judged[f"{name}.seconds"] = clock.target(figures[name]["seconds"], most=MOST_SECONDS)
        judged[f"{name}.peak_mib"] = clock.target(figures[name]["peak_mib"], most=MOST_MIB)
    judged["run.jobs"] = clock.target(figures["run"]["jobs"], least=SHARDS["more"] / PER_JOB)
    judged["run.over_jobs_alone"] = clock.target(figures["run"]["over_jobs_alone"], most=MOST_OVER_JOBS)
    return judged


def snakemake(folder: Path, *words: str, seconds: float = 0.0) -> dict[str, Any]:
    """Runs Snakemake with the repository's rules and default profile, and near-empty jobs; RuntimeError if it fails."""
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
    return {"jobs": jobs, **took, "peak_mib": round(usage.ru_maxrss / 1024), "load": round(os.getloadavg()[0], 2)}


def put_inputs(folder: Path) -> None:
    """Writes config.yaml with added experiments of many shards, and empty input files for sd15-cfg8."""
    config = read_file(ROOT / "config.yaml")
    for number, (name, num) in enumerate(SHARDS.items()):  # different seeds, so that they share no blocks
        pairs = {"num_pairs": num * 4, "shard_size": 4, "shards_per_job": PER_JOB, "first_seed": 2**30 + number * 2**20}
        config["experiments"][name] = {"extends": "digits", "pairs": pairs}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    shared, last = config["experiments"]["sd15-cfg3"], config["experiments"]["sd15-cfg8"]
    weights = shared["reference"]["features"]["file"], shared["distill"]["method"]["regression_distance"]["file"]
    paths = [*(entry["file"] for entry in last["prompts"]["files"]), shared["sample"]["prompts"]["file"], *weights]
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
