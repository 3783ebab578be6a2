"""A tree of this repository, with configurations in its own format, run by its own Snakefile."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from snakemake.utils import update_config  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
KEPT = "kept"  # folder beside results/ for checkpoints, which a stage removes at its end
POLL_SECONDS = 0.02


class Failed(RuntimeError):
    """Snakemake, or a stage that it started, ended with an error."""


@dataclass(frozen=True)
class Tree:
    """A tree, and the folder with a configuration for each case: NAME.yaml, and the shorter quick/NAME.yaml."""

    tree: Path
    configs: Path

    def config(self, case: str, *, quick: bool) -> str:
        """The configuration of a case as YAML."""
        config = yaml.safe_load((self.configs / f"{case}.yaml").read_text())
        if quick:
            update_config(config, yaml.safe_load((self.configs / "quick" / f"{case}.yaml").read_text()))
        return yaml.safe_dump(config, sort_keys=False)

    def make(self, folder: Path, targets: Sequence[str], *, cores: int, checkpoints: Sequence[str] = ()) -> list[str]:
        """Makes artifacts in a folder with a config.yaml, and keeps checkpoints that stages remove meanwhile.

        Only files that are missing, or older than their inputs, are made.

        Args:
            targets: paths below results/.
            cores: jobs at a time.
            checkpoints: globs below results/; matching files are kept below `KEPT`.

        Returns:
            Names of the rules that ran.

        Raises:
            Failed: with the end of the output.
        """
        line = [sys.executable, "-m", "snakemake", "--snakefile", str(self.tree / "Snakefile")]
        line += ["--workflow-profile", str(self.tree / "profiles" / "default"), "--cores", str(cores)]
        line += ["--rerun-triggers", "mtime", "--", *(f"results/{target}" for target in targets)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.tree)}
        output = folder / "snakemake.out"
        with open(output, "w") as stream:
            process = subprocess.Popen(line, cwd=folder, env=environment, stdout=stream, stderr=stream)
            try:
                while process.poll() is None:
                    _keep(folder, checkpoints)
                    time.sleep(POLL_SECONDS)
            finally:
                if process.poll() is None:  # this process was interrupted
                    process.terminate()
                    process.wait()
        text = output.read_text()
        if process.returncode:
            raise Failed(f"snakemake ended with {process.returncode} in {folder}:\n{text[-3000:]}")
        return sorted(set(re.findall(r"^(?:local)?rule (\w+):$", text, re.M)))


def _keep(folder: Path, patterns: Sequence[str]) -> None:
    """Links the existing checkpoints, which are complete: each is written under another name, then renamed."""
    results = folder / "results"
    for path in (path for pattern in patterns for path in results.glob(pattern)):
        link = folder / KEPT / path.relative_to(results)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                os.link(path, link)


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a temporary worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*words: str) -> str:
    """The output of git in this repository; ValueError with its message if it fails."""
    answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"git {' '.join(words)}: {answer.stderr.strip()}")
    return answer.stdout.strip()
