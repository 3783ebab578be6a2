"""The cases: their artifacts in the order of their stages, and their input files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TEXT_FILES = """
import json, pathlib, sys
import pyarrow, pyarrow.parquet
from tests.stable_diffusion_files import WORDS, make_stable_diffusion, make_tiny_autoencoder
folder = pathlib.Path(sys.argv[1])
make_stable_diffusion(folder / "stable-diffusion", resolution=8)
make_tiny_autoencoder(folder / "tiny-autoencoder")
texts = [f"a {one} {other}" for one in WORDS for other in WORDS]
pyarrow.parquet.write_table(pyarrow.table({"prompt": texts[:40]}), folder / "prompts.parquet")
captions = [{"image_id": number, "id": number, "caption": text} for number, text in enumerate(texts[40:60])]
(folder / "captions.json").write_text(json.dumps({"annotations": captions}))
"""  # run in the tree of the earlier version, whose test files are frozen


@dataclass(frozen=True)
class Step:
    """Artifacts of one stage, or of several independent stages.

    Attributes:
        targets: globs below results/ of the targets for Snakemake.
        beside: globs of further artifacts.
        checkpoints: globs of checkpoints, which the stage removes at its end.
    """

    name: str
    targets: tuple[str, ...]
    beside: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()

    def artifacts(self, results: Path, globs: Iterable[str] | None = None) -> list[str]:
        """Paths of the existing artifacts, relative to the folder of results."""
        patterns = (*self.targets, *self.beside) if globs is None else globs
        paths = [path for pattern in patterns for path in sorted(results.glob(pattern))]
        return [str(path.relative_to(results)) for path in paths]


@dataclass(frozen=True)
class Case:
    """An experiment, with its configuration of the same name, and its steps in order."""

    name: str
    steps: tuple[Step, ...]

    @property
    def whole(self) -> list[str]:
        """Targets that make everything: those that are no globs."""
        return [target for step in self.steps for target in step.targets if "*" not in target]

    @property
    def checkpoints(self) -> list[str]:
        """Globs of checkpoints."""
        return [pattern for step in self.steps for pattern in step.checkpoints]


def _steps(name: str, first: tuple[str, ...]) -> tuple[Step, ...]:
    """The chain of an experiment from its sources `first` to its samples."""
    outputs = f"{name}/distill/generator.safetensors", f"{name}/distill/log.parquet"
    return (
        Step("sources", first),
        Step("pairs", (f"{name}/pairs/blocks/*.parquet",), (f"{name}/pairs/*.tar",)),
        Step("pairs_manifest", (f"{name}/pairs/manifest.parquet",)),
        Step("distill", outputs, checkpoints=(f"{name}/distill/checkpoints/[0-9]*.safetensors",)),
        Step("sample", (f"{name}/samples/blocks/*.parquet",), (f"{name}/samples/*.tar",)),
        Step("samples_manifest", (f"{name}/samples/manifest.parquet",)),
    )


def _scored(name: str, *others: str) -> Case:
    """An experiment with a reference and scores; `others` are experiments whose teachers it reads."""
    teachers = [f"{other}/teacher/denoiser.safetensors" for other in (name, *others)]
    scores = ("fid", "kid", "prdc", "classes", "memorisation")
    return Case(
        name,
        (
            *_steps(name, (*teachers, f"{name}/reference/reference.safetensors")),
            Step("features", (f"{name}/features/*.safetensors",)),
            Step("evaluate", tuple(f"{name}/{score}.json" for score in scores)),
        ),
    )


def _text(name: str) -> Case:
    """An experiment of text, up to its samples."""
    parts = ("denoiser", "text_encoder", "autoencoder", "tiny_autoencoder")
    texts = (f"{name}/prompts/prompts.parquet", f"{name}/captions/captions.parquet")
    return Case(name, _steps(name, (*(f"{name}/teacher/{part}.safetensors" for part in parts), *texts)))


CASES = {case.name: case for case in (_scored("digits"), _scored("toy2d", "toy2d-start"), _text("text"))}


def write_inputs(case: str, tree: Path, folder: Path) -> None:
    """Writes the input files of a case, from the tree of the earlier version."""
    folder.mkdir(parents=True)
    if case == "digits":
        shutil.copy2(tree / "workflow" / "resources" / "digits32.safetensors", folder)
    if case == "text":
        line = [sys.executable, "-c", TEXT_FILES, str(folder)]
        answer = subprocess.run(line, cwd=tree, capture_output=True, text=True)
        if answer.returncode:
            raise ValueError(f"the inputs of case text cannot be written:\n{answer.stderr[-3000:]}")
