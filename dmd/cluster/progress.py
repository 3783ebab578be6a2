"""How far the stages of an experiment are, as files and logs say; nothing is written, no scheduler is asked.

A job is `done` when its artifacts are there; else its log tells, see `dmd.cluster.job_log`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmd.cluster import job_log
from dmd.cluster.job_log import Pace, Told
from dmd.config import RULES, Experiments

STAGES: dict[str, list[str]] = {}  # stage -> rules of its jobs
for _name, _rule in RULES.items():
    if _rule.files:
        STAGES.setdefault(_rule.shown, []).append(_name)
CHAIN = ("evaluate", "sample", "distill", "pairs_manifest", "reference", "teacher")  # the first it has is its end
ON_REQUEST = tuple(name for name, rule in RULES.items() if rule.on_request)
STATES = ("running", "failed", "stopped", "waiting", "done")  # a stage is the first of these that one of its jobs is


@dataclass(frozen=True)
class Job:
    """One job and what became of it.

    Attributes:
        owner: experiment under whose name its artifacts lie.
        num_images: that its block makes; 0 where it makes no blocks.
    """

    owner: str
    log: Path
    num_images: int
    told: Told

    @property
    def pace(self) -> Pace | None:
        """How far it is, if it runs and has said so."""
        return self.told.pace if self.told.state == "running" else None


@dataclass(frozen=True)
class Stage:
    """The jobs of one stage of an experiment; those that it shares with its ancestors are theirs."""

    experiment: str
    name: str
    jobs: list[Job]
    grid: Path | None

    @property
    def state(self) -> str:
        return next(state for state in STATES if self.count[state])

    @cached_property
    def count(self) -> Counter[str]:
        """Jobs by state."""
        return Counter(job.told.state for job in self.jobs)

    @property
    def shared(self) -> bool:
        """Whether all of it is an ancestor's."""
        return all(job.owner != self.experiment for job in self.jobs)

    @property
    def paces(self) -> list[Pace]:
        """Of the running jobs that have said how far they are, all in the unit of the first."""
        found = [job.pace for job in self.jobs if job.pace]
        return [pace for pace in found if pace.unit == found[0].unit]

    @property
    def seconds_left(self) -> float | None:
        """At the pace of now, blocks that wait included; None where nothing runs or was counted yet."""
        paces = self.paces
        if not (rate := sum(pace.rate for pace in paces)):
            return None
        waiting = [job.num_images for job in self.jobs if job.num_images and job.told.state != "done" and not job.pace]
        more = sum(waiting) if paces[0].unit == "images" else len(waiting) * paces[0].total
        return (sum(pace.total - pace.count for pace in paces) + more) / rate


class Results:
    """The folder of results at one moment: each folder is listed once, each log of an unfinished job read once."""

    def __init__(self, folder: Path, experiments: Experiments) -> None:
        self._folder, self._experiments = folder, experiments
        self._names: dict[Path, set[str]] = {}
        self._jobs: dict[tuple[str, str, tuple[int, int] | None], Job] = {}

    def known(self) -> list[str]:
        """Experiments that something was made or begun for."""
        return [name for name in self._experiments.merged if name in self._listed(self._folder)]

    def stages(self, experiment: str) -> list[Stage]:
        """The stages that lead to the experiment's scores, and those on request that have left a trace.

        Raises:
            ConfigError: unknown experiment.
        """
        self._experiments.whole(experiment)
        wanted = self._wanted(experiment)
        found = []
        for name, rules in STAGES.items():
            jobs = [job for rule in rules if rule in wanted for job in self._of(experiment, rule)]
            if jobs:
                grid = self._newest_grid(jobs[0].owner) if name == "distill" else None
                found.append(Stage(experiment, name, jobs, grid))
        return found

    def _wanted(self, experiment: str) -> set[str]:
        look = self._experiments
        end = next((rule for rule in CHAIN if look.has(experiment, rule)), None)
        left, found = [(end, experiment)] if end else [], set()
        while left:
            rule, name = left.pop()
            if rule not in found and name == experiment:  # `start` is the teacher of another
                found.add(rule)
                left += look.upstream(experiment, rule)
        for rule in ON_REQUEST:
            own = look.has(experiment, rule) and look.owner(experiment, rule) == experiment
            if own and any(job.told.state != "waiting" for job in self._of(experiment, rule)):
                found.add(rule)
        return found

    def _of(self, experiment: str, rule: str) -> list[Job]:
        owner = self._experiments.owner(experiment, rule)
        if not RULES[rule].blocks:
            return [self._job(owner, rule, None, 0)]
        size = self._experiments.section(experiment, "pairs" if rule == "pairs" else "sample").shard_size
        blocks = self._experiments.blocks(experiment, rule)
        return [self._job(owner, rule, block, (block[1] - block[0] + 1) * size) for block in blocks]

    def _job(self, owner: str, rule: str, block: tuple[int, int] | None, num_images: int) -> Job:
        key = (owner, rule, block)
        if key not in self._jobs:
            first, last = block or (0, 0)
            names = [name.format(first=first, last=last) for name in RULES[rule].files]
            place = f"-{first:05d}-{last:05d}" if block else ""
            log = self._folder / owner / "logs" / f"{rule}{place}.log"
            done = all(self._exists(self._folder / owner / name) for name in names)
            told = Told("done") if done else job_log.read(log) if self._exists(log) else Told("waiting")
            self._jobs[key] = Job(owner, log, num_images, told)
        return self._jobs[key]

    def _newest_grid(self, owner: str) -> Path | None:
        folder = self._folder / owner / "distill" / "grids"
        names = [name for name in self._listed(folder) if name.endswith(".png") and not name.startswith(".")]
        return folder / max(names) if names else None

    def _exists(self, path: Path) -> bool:
        return path.name in self._listed(path.parent)

    def _listed(self, folder: Path) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = set()
        return self._names[folder]
