"""Progress of the stages of experiments, read from their files only: without writing, without asking a scheduler.

A job is `done` when its artifacts exist; otherwise its status file gives its state, see `dmd.jobs.job_status`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmd.config import RULES, Experiments
from dmd.jobs import job_status
from dmd.jobs.job_status import JobStatus, Throughput

STAGES: dict[str, list[str]] = {}  # stage -> rules of its jobs
for _name, _rule in RULES.items():
    if _rule.files:
        STAGES.setdefault(_rule.shown, []).append(_name)
CHAIN = ("evaluate", "sample", "distill", "pairs_manifest", "reference", "teacher")  # the first present ends the chain
ON_REQUEST = tuple(name for name, rule in RULES.items() if rule.on_request)
STATES = ("running", "failed", "stopped", "waiting", "done")  # of a stage: the first that one of its jobs has


@dataclass(frozen=True)
class Job:
    """One job and its status.

    Attributes:
        owner: experiment under whose name its artifacts lie.
        num_images: number of images of its block; 0 if it makes no block.
    """

    owner: str
    log: Path
    num_images: int
    status: JobStatus

    @property
    def throughput(self) -> Throughput | None:
        """Its progress, if it is running and has reported any."""
        return self.status.throughput if self.status.state == "running" else None


@dataclass(frozen=True)
class Stage:
    """The jobs of one stage of an experiment; a shared artifact's job is that of the ancestor that owns it."""

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
        return Counter(job.status.state for job in self.jobs)

    @property
    def shared(self) -> bool:
        """Whether all its jobs are those of ancestors."""
        return all(job.owner != self.experiment for job in self.jobs)

    @property
    def throughput(self) -> Throughput | None:
        """The sum over running jobs with the same unit as the first; None if none has reported yet."""
        counted = [job.throughput for job in self.jobs if job.throughput]
        same_unit = [each for each in counted if each.unit == counted[0].unit]
        if not same_unit:
            return None
        return Throughput(
            count=sum(each.count for each in same_unit),
            total=sum(each.total for each in same_unit),
            unit=counted[0].unit,
            rate=sum(each.rate for each in same_unit),
            image_rate=sum(each.image_rate or 0.0 for each in same_unit) or None,
        )

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the present rate, waiting blocks included; None if no running job has reported yet."""
        if not (running := self.throughput) or not running.rate:
            return None
        total = next(job.throughput.total for job in self.jobs if job.throughput)
        blocks = [job for job in self.jobs if job.num_images and job.status.state != "done" and not job.throughput]
        waiting = sum(job.num_images if running.unit == "images" else total for job in blocks)
        return (running.total - running.count + waiting) / running.rate


class Results:
    """A snapshot of the folder of results: each folder is listed once, each status file read once."""

    def __init__(self, folder: Path, experiments: Experiments) -> None:
        self._folder, self._experiments = folder, experiments
        self._listings: dict[Path, set[str]] = {}
        self._jobs: dict[tuple[str, str, tuple[int, int] | None], Job] = {}

    def known(self) -> list[str]:
        """Experiments that have a folder, since a job of theirs has begun."""
        return [name for name in self._experiments.merged if name in self._listing(self._folder)]

    def stages(self, experiment: str) -> list[Stage]:
        """The stages that the experiment's scores need, and stages on request of which a job has begun.

        Raises:
            ConfigError: unknown experiment.
        """
        self._experiments.sections(experiment)
        rules_to_show = self._rules_to_show(experiment)
        stages = []
        for name, rules in STAGES.items():
            jobs = [job for rule in rules if rule in rules_to_show for job in self._jobs_of(experiment, rule)]
            if jobs:
                grid = self._newest_grid(jobs[0].owner) if name == "distill" else None
                stages.append(Stage(experiment, name, jobs, grid))
        return stages

    def _rules_to_show(self, experiment: str) -> set[str]:
        experiments = self._experiments
        last = next((rule for rule in CHAIN if experiments.has(experiment, rule)), None)
        to_visit, rules = [(last, experiment)] if last else [], set()
        while to_visit:
            rule, name = to_visit.pop()
            if rule not in rules and name == experiment:  # `start` is the teacher of another
                rules.add(rule)
                to_visit += experiments.upstream(experiment, rule)
        for rule in ON_REQUEST:
            own = experiments.has(experiment, rule) and experiments.owner(experiment, rule) == experiment
            if own and any(job.status.state != "waiting" for job in self._jobs_of(experiment, rule)):
                rules.add(rule)
        return rules

    def _jobs_of(self, experiment: str, rule: str) -> list[Job]:
        owner = self._experiments.owner(experiment, rule)
        if not RULES[rule].blocks:
            return [self._job(owner, rule, None, 0)]
        blocks = self._experiments.blocks(experiment, rule)
        return [self._job(owner, rule, block, self._experiments.num_items(experiment, rule, block)) for block in blocks]

    def _job(self, owner: str, rule: str, block: tuple[int, int] | None, num_images: int) -> Job:
        key = (owner, rule, block)
        if key not in self._jobs:
            first, last = block or (0, 0)
            folder = self._folder / owner
            artifacts = [folder / name.format(first=first, last=last) for name in RULES[rule].files]
            log = folder / "logs" / (f"{rule}-{first:05d}-{last:05d}.log" if block else f"{rule}.log")
            path = job_status.path_beside(log)
            if all(self._exists(artifact) for artifact in artifacts):
                noted = rule == "distill" and self._exists(path)  # the only rule with notes
                status = JobStatus(state="done", note=job_status.last_note(path) if noted else None)
            elif self._exists(path):
                status = job_status.read(path)
            else:
                status = JobStatus(state="waiting")
            self._jobs[key] = Job(owner, log, num_images, status)
        return self._jobs[key]

    def _newest_grid(self, owner: str) -> Path | None:
        folder = self._folder / owner / "distill" / "grids"
        names = [name for name in self._listing(folder) if name.endswith(".png") and not name.startswith(".")]
        return folder / max(names) if names else None

    def _exists(self, path: Path) -> bool:
        return path.name in self._listing(path.parent)

    def _listing(self, folder: Path) -> set[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = set()
        return self._listings[folder]
