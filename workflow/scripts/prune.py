"""Lists files in results/ that no experiment owns; --delete removes them.

Such files are left behind by an experiment that was removed or renamed, by fewer pairs or samples than before, or by
a change that made two experiments share an artifact. Refuses to run while a stage is writing, whose temporary files
have no owner.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "python"))
sys.path.append(str(ROOT))  # last, since a file named torch.py may lie there

from dmd.config import RULES, Configuration, Experiments, load, printing  # noqa: E402
from dmd.config.artifacts import PARTS  # noqa: E402
from dmd.config.rule_table import ARTIFACTS  # noqa: E402
from dmd.data import manifest  # noqa: E402
from dmd.jobs import job_status  # noqa: E402
from dmd.provenance.audit import refuse_while_writing  # noqa: E402

SCRATCH = ("checkpoints", "grids", "tensorboard")


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delete", action="store_true", help="remove them")
    parsed = parser.parse_args()
    try:
        config = load()
        refuse_while_writing(Path("results"))
        found = unowned(Path("results"), config)
    except ValueError as error:
        sys.exit(printing.lines(f"error: {error}"))
    size = sum(path.lstat().st_size for path in found)
    for path in found:
        print(printing.line(path))
        if parsed.delete:
            path.unlink()
    if parsed.delete:
        remove_empty_folders(Path("results"))
    verb = "removed" if parsed.delete else "that no experiment owns (make prune DELETE=1 removes them)"
    print(f"{len(found)} files, {size / 2**20:.1f} MiB, {verb}")


def unowned(results: Path, config: Configuration) -> list[Path]:
    """Files below `results` that neither are an artifact of an experiment nor belong to one."""
    experiments = Experiments(config)
    owned = {"README.md", "report.html", *shared_files(config)}
    scratch = {"logs/slurm"}
    for experiment in experiments.merged:
        for rule in ARTIFACTS:
            if not experiments.has(experiment, rule):
                continue
            owner = experiments.owner(experiment, rule)
            owned.update(files_of(experiments, experiment, rule, owner))
            if rule in ("teacher", "distill", *PARTS):
                scratch.update(str(Path(experiments.path(experiment, rule)).with_name(name)) for name in SCRATCH)
    return [
        path
        for path in sorted(results.rglob("*"))
        if not path.is_dir() and not is_owned(path.relative_to(results), owned, scratch)
    ]


def files_of(experiments: Experiments, experiment: str, rule: str, owner: str) -> Iterator[str]:
    """Artifacts, tars, logs and benchmarks of one rule of one experiment."""
    jobs = [rule]
    if RULES[rule].blocks:
        blocks = experiments.blocks(experiment, rule)
        jobs = [f"{rule}-{first:05d}-{last:05d}" for first, last in blocks]
        yield from (experiments.path(experiment, rule, block) for block in blocks)
        if tars := RULES[rule].tars:
            yield from (f"{owner}/{tars.format(shard=shard)}" for shard in range(blocks[-1][1] + 1))
    else:
        yield (first := experiments.path(experiment, rule))
        if RULES[rule].tars and (listed := Path("results", first)).exists():  # the manifest lists them
            yield from (str(Path(first).parent / shard.path.name) for shard in manifest.read(listed).shards)
    yield from (f"{owner}/{name}" for name in RULES[rule].files[1:])
    for job in jobs:
        yield from (*log_files(f"{owner}/logs/{job}.log"), f"{owner}/benchmarks/{job}.tsv")


def shared_files(config: Configuration) -> Iterator[str]:
    """Tables, charts, and logs of what was fetched."""
    for name in config.tables:
        yield from (f"tables/{name}.md", f"tables/{name}.csv", *log_files(f"logs/tables-{name}.log"))
    for name in config.charts:
        yield from (f"tables/{name}.png", *log_files(f"logs/charts-{name}.log"))
    for entry in config.inputs.values():
        yield from log_files(f"logs/fetch/{entry.file}.log")


def log_files(log: str) -> tuple[str, str]:
    """The log of a job and the status file beside it."""
    return log, str(job_status.path_beside(Path(log)))


def is_owned(path: Path, owned: set[str], scratch: set[str]) -> bool:
    """Whether a file is an artifact, the record or lock of one, or lies in a scratch folder."""
    if str(path) in owned or any(str(parent) in scratch for parent in path.parents):
        return True
    hidden = path.name.startswith(".") and path.suffix in (".json", ".lock")
    return hidden and str(path.with_name(path.name[1:].removesuffix(path.suffix))) in owned


def remove_empty_folders(results: Path) -> None:
    """Removes folders below `results` that hold nothing any more."""
    for folder in sorted((path for path in results.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


if __name__ == "__main__":
    main()
