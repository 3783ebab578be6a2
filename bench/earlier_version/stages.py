"""Runs the stages of a case in both versions and compares their artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.earlier_version.cases import Case, Step, write_inputs
from bench.earlier_version.comparison import Comparison, compare
from bench.earlier_version.renames import RENAMES, Rename
from bench.earlier_version.tree import KEPT, Failed, Tree


@dataclass
class StageReport:
    """Comparison of a stage of this tree with the earlier version.

    Attributes:
        rules: rules that ran in this tree.
        failure: why not everything could be compared; "" if everything was.
    """

    case: str
    stage: str
    rules: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    failure: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the stage ran, and made the same artifacts, at least one."""
        return not self.failure and bool(self.comparisons) and all(part.agrees for part in self.comparisons)


def make_whole(case: Case, tree: Tree, folder: Path, *, inputs_from: Path, quick: bool, cores: int) -> list[str]:
    """Makes a case from nothing; returns the names of the rules that ran.

    Args:
        folder: of results and inputs.
        inputs_from: tree with the input files.
    """
    write_inputs(case.name, inputs_from, folder / "inputs")
    (folder / "config.yaml").write_text(tree.config(case.name, quick=quick))
    return tree.make(folder, case.whole, cores=cores, checkpoints=case.checkpoints)


def from_equal_inputs(
    case: Case, made: Path, tree: Tree, folder: Path, *, quick: bool, cores: int, renames: Sequence[Rename] = RENAMES
) -> Iterator[StageReport]:
    """Runs each stage of a tree on the artifacts in `made`, and compares its artifacts with those in `made`.

    Args:
        made: a folder filled by `make_whole`.
        folder: a new folder, with one sub-folder per stage.
    """
    for number, step in enumerate(case.steps):
        own_folder = folder / f"{number}-{step.name}"
        put_inputs(case.steps[:number], made, own_folder)
        (own_folder / "config.yaml").write_text(tree.config(case.name, quick=quick))
        report = StageReport(case.name, step.name)
        before = _states(own_folder / "results")
        try:
            targets = step.artifacts(made / "results", step.targets)
            report.rules = tree.make(own_folder, targets, cores=cores, checkpoints=step.checkpoints)
            after = _states(own_folder / "results")
            if again := [path for path, state in before.items() if after.get(path) != state]:
                raise Failed(f"inputs were made again: {', '.join(again)}")
            report.comparisons = compare_step(step, made, own_folder, renames)
        except (Failed, ValueError) as error:
            report.failure = str(error)
        yield report


def from_own_inputs(
    case: Case, made: Path, tree: Tree, folder: Path, *, quick: bool, cores: int, renames: Sequence[Rename] = RENAMES
) -> Iterator[StageReport]:
    """Runs all stages of a tree after each other and compares each; later stages inherit differences."""
    shutil.copytree(made / "inputs", folder / "inputs")
    (folder / "config.yaml").write_text(tree.config(case.name, quick=quick))
    rules: list[str] = []
    stopped = ""
    try:
        rules = tree.make(folder, case.whole, cores=cores, checkpoints=case.checkpoints)
    except Failed as error:  # earlier stages are still compared
        stopped = f"\n{error}"
    for step in case.steps:
        report = StageReport(case.name, step.name, rules)
        try:
            report.comparisons = compare_step(step, made, folder, renames)
        except ValueError as error:
            report.failure, stopped = f"{error}{stopped}", ""
        yield report


def put_inputs(steps: Sequence[Step], made: Path, folder: Path) -> None:
    """Copies the artifacts of earlier steps with their records and times, and the input files."""
    shutil.copytree(made / "inputs", folder / "inputs")
    for step in steps:
        for name in step.artifacts(made / "results"):
            path, copy = made / "results" / name, folder / "results" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            record = path.with_name(f".{path.name}.json")
            if record.exists():
                shutil.copy2(record, copy.with_name(record.name))


def compare_step(step: Step, made: Path, folder: Path, renames: Sequence[Rename] = RENAMES) -> list[Comparison]:
    """Compares the artifacts of a step, and its checkpoints; ValueError for a file that is on one side only."""
    compared: list[Comparison] = []
    for below, globs in (("results", (*step.targets, *step.beside)), (KEPT, step.checkpoints)):
        names = step.artifacts(made / below, globs)
        others = step.artifacts(folder / below, globs)
        if lone := sorted({*names} ^ {*others}):
            where = ", ".join(f"{name} ({'earlier version' if name in names else 'this tree'})" for name in lone)
            raise ValueError(f"on one side only: {where}")
        if globs and not names:
            raise ValueError(f"no file matches {', '.join(globs)}")
        for name in names:
            compared += compare(name, made / below / name, folder / below / name, renames)
    return compared


def _states(results: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file, by path."""
    states = {str(path.relative_to(results)): path.stat() for path in results.rglob("*") if path.is_file()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}
