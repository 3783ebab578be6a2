"""Experiments derived from those of config.yaml, which Snakemake runs in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dmd.config import Experiments, load
from dmd.config.reading import read_file

ROOT = Path(__file__).resolve().parents[1]


class DerivedRuns:
    """A folder with the experiments of config.yaml and further ones. It keeps what is made, so a run can go on.

    Attributes:
        shipped: config.yaml.
        results: folder of the results.

    Args:
        folder: it gets a config.yaml; results are made in its folder results/.
        cores: that Snakemake may use, or "all".
    """

    def __init__(self, folder: Path, cores: str) -> None:
        self.results = folder.resolve() / "results"
        self._folder, self._cores = folder.resolve(), cores
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("workflow", "inputs"):
            link = self._folder / name
            link.unlink(missing_ok=True)  # it may be that of another checkout
            if (ROOT / name).exists():
                link.symlink_to(ROOT / name)
        self.shipped = load(ROOT / "config.yaml")
        self._config = read_file(ROOT / "config.yaml") | {"tables": {}, "charts": {}}

    def add(self, name: str, experiment: dict[str, Any]) -> None:
        """Adds an experiment, or replaces it."""
        self._config["experiments"][name] = experiment

    def add_table(self, name: str, table: dict[str, Any]) -> None:
        """Adds a table, or replaces it."""
        self._config["tables"][name] = table

    def experiments(self) -> Experiments:
        """All experiments, as they are now written into the folder."""
        path = self._folder / "config.yaml"
        path.write_text(yaml.safe_dump(self._config, sort_keys=False))
        return Experiments(load(path))

    def make(self, files: Iterable[str]) -> bool:
        """Makes files of results/; False if a job failed: what it makes is missing, what depends on that may be old."""
        command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
        command += ["--directory", str(self._folder), "--cores", self._cores, "--keep-going"]
        wanted = [str(Path("results", file)) for file in files]
        done = subprocess.run([*command, *wanted], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        return done.returncode == 0
