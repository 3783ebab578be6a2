"""The reduced chain that faults strike: points of the plane, all stages from teacher to score, seconds of work each."""

import contextlib
import csv
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from tests.workflow.conftest import COMPARED

ROOT = Path(__file__).resolve().parents[2]
NAME = "points"
FID = f"results/{NAME}/fid.json"
PATIENCE = 600.0  # seconds of a run, however busy the machine
EXPERIMENT: dict[str, Any] = {
    "device": "cpu",
    "dataset": {
        "kind": "gaussian-mixture",
        "means": [[-1.0, 0.0], [1.0, 0.0]],
        "stds": [0.2, 0.2],
        "weights": [0.5, 0.5],
        "num_training": 200,
        "num_held_out": 200,
    },
    "teacher": {
        "kind": "train",
        "network": {"kind": "mlp", "width": 32, "layers": 3},
        "training": {
            "method": {"name": "denoising", "batch_size": 64, "phases": [{"updates": 300}]},
            "optimisers": {"student": {"learning_rate": 0.001, "weight_decay": 0.0, "gradient_clip": 1.0}},
            "schedule": {"warmup": 0},
            "ema_decay": 0.9,
        },
    },
    "reference": {"features": {"kind": "coordinates"}, "floor_draws": 3},
    "pairs": {
        "num_pairs": 384,
        "shard_size": 16,
        "shards_per_job": 12,
        "batch_size": 8,
        "solver": {"name": "heun", "steps": 24},
    },
    "distill": {
        "method": {
            "name": "dmd",
            "matching_batch_size": 32,
            "regression_batch_size": 32,
            "phases": [{"updates": 240, "fake_updates": 2}],
        },
        "optimisers": {"student": {"learning_rate": 0.0004}},
        "schedule": {"warmup": 5},
        "checkpoint_every": 10,
        "grid_every": 80,
    },
    "sample": {"num_samples": 1200, "shard_size": 50, "shards_per_job": 24, "batch_size": 4},
    "evaluate": {"neighbours": 3},
}


class Stage(NamedTuple):
    """patterns: what it makes, below the experiment's folder; jobs: of a run from it on; weight: how often to begin."""

    patterns: list[str]
    jobs: int
    weight: int


STAGES = {
    "teacher": Stage(["teacher"], 8, 1),
    "reference": Stage(["reference"], 3, 1),
    "pairs": Stage(["pairs/0*", "pairs/.0*", "pairs/blocks"], 7, 3),
    "manifest": Stage(["pairs/manifest.parquet", "pairs/.manifest.parquet.json"], 5, 2),
    "distill": Stage(["distill"], 4, 4),
    "sample": Stage(["samples"], 3, 3),
    "features": Stage(["features"], 2, 2),
    "evaluate": Stage(["*.json", ".*.json"], 1, 1),
}


def configure(folder: Path) -> None:
    """Writes config.yaml."""
    row = {"label": NAME, "experiments": [NAME]}
    config = {"experiments": {NAME: EXPERIMENT}, "tables": {"demo": {"rows": [row]}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def forget(folder: Path, stage: str) -> None:
    """Removes what `stage` and those after it have made (of "reference" itself and what reads it), and all logs."""
    names = list(STAGES)
    after = [stage, *names[names.index("features") :]] if stage == "reference" else names[names.index(stage) :]
    for name in set(after) - ({"reference"} - {stage}):
        for pattern in STAGES[name].patterns:
            for path in (folder / "results" / NAME).glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "results" / NAME / "logs")


class Times(NamedTuple):
    """start: seconds from the start of a stage to its log; work: from there to its end."""

    start: float
    work: float


def times(folder: Path) -> dict[str, Times]:
    """How long each stage of a whole run took, by the name of its log."""
    found = {}
    for log in sorted((folder / "results" / NAME / "logs").glob("*.log")):
        work = float(re.findall(r"done in ([\d.]+) s", log.read_text())[-1])
        with open(folder / "results" / NAME / "benchmarks" / f"{log.stem}.tsv") as stream:
            whole = float(list(csv.DictReader(stream, delimiter="\t"))[-1]["s"])
        found[log.stem] = Times(max(whole - work, 0.0), work)
    return found


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every artifact and record below results/, by relative path."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(results.rglob("*"))
        if path.is_file() and path.suffix in COMPARED and not {"logs", "benchmarks"} & set(path.parts)
    }


class Run:
    """A snakemake and all that it starts, in a session of its own.

    Attributes:
        output: what all of them say on the screen.
    """

    def __init__(self, folder: Path, *words: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._said = folder / f"said-{time.monotonic_ns()}.txt"
        line = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
        line += ["--directory", str(folder), "--workflow-profile", str(ROOT / "profiles/default")]
        own = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with open(self._said, "ab") as said:
            self.process = subprocess.Popen(
                [*line, *words], stdout=said, stderr=said, env=own, cwd=folder, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stages(self, name: str = "") -> list[psutil.Process]:
        """Processes of stages that run now, of all or of one."""
        return [each for each in self._session() if f"dmd.stages.{name}" in " ".join(_line(each)) and _is_python(each)]

    def _session(self) -> list[psutil.Process]:
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(each.pid) == self.process.pid and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    def ended(self, patience: float = PATIENCE) -> int:
        """Exit status; RuntimeError if the run does not end in time, and it is killed then."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"snakemake did not end within {patience:g} s: {self.output[-500:]}") from None
        finally:
            if self.alive:
                self.kill()

    def outlived(self, patience: float = 120.0) -> None:
        """Waits for what still runs of the session after snakemake has ended."""
        deadline = time.monotonic() + patience
        while self._session() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()

    def kill(self) -> None:
        """Ends all of the session, whatever state it is in."""
        for each in self._session():
            with contextlib.suppress(psutil.Error):
                each.resume()
                each.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def output(self) -> str:
        return self._said.read_text(errors="replace")


def log_of(process: psutil.Process, folder: Path) -> Path | None:
    """The log that the command of a stage names."""
    words = _line(process)
    return folder / words[words.index("--log") + 1] if "--log" in words[:-1] else None


def make(folder: Path, *words: str, patience: float = PATIENCE) -> tuple[int, str]:
    """A run to its end: exit status and output."""
    run = Run(folder, *words)
    try:
        return run.ended(patience), run.output
    finally:
        run.kill()


def verify(folder: Path) -> tuple[int, str]:
    """`make verify`: exit status and output."""
    line = [sys.executable, "-m", "dmd.verify", "results", "--delete"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment, timeout=PATIENCE)
    return answer.returncode, answer.stdout + answer.stderr


def artifacts(folder: Path) -> Iterator[Path]:
    """Every artifact and record that is there now."""
    for path in sorted((folder / "results").rglob("*")):
        if path.is_file() and path.suffix in COMPARED and not {"logs", "benchmarks", "grids"} & set(path.parts):
            yield path


def _line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _is_python(process: psutil.Process) -> bool:
    return "python" in Path((_line(process) or [""])[0]).name
