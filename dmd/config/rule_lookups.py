"""What the rules ask of the configuration: functions of a job, in the form in which Snakemake calls them.

A rule passes names of rules, as in `provider.reads("pairs", "prompts")`, or the name of a section, as in
`provider.files("reference.moments")`. A function of the wildcards alone gives an input, or a parameter whose change
reruns the job; one that also takes the input or the output gives a parameter whose change alone reruns nothing.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from dmd.config.artifacts import Experiments
from dmd.config.inheritance import Configuration
from dmd.config.messages import ConfigError
from dmd.config.resources import resources
from dmd.config.rule_table import RULES

P = ParamSpec("P")
T = TypeVar("T")
SAVED = ("json", "safetensors", "txt")  # what diffusers saves


class Wildcards(Protocol):
    """Those of a job; `first` and `last` of one that makes or reads a block of shards."""

    experiment: str

    def get(self, name: str) -> Any: ...


Paths = Callable[[Wildcards], str | list[str]]
Text = Callable[[Wildcards], str]


def exits_on_config_error(function: Callable[P, T]) -> Callable[P, T]:
    """Exits with one message at a ConfigError, which would reach the user wrapped in Snakemake's traceback."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return function(*arguments, **keywords)
        except ConfigError as error:
            sys.exit(f"error: {error}")

    return call


class RuleLookups:
    """Look-ups over one configuration, for its rules.

    Attributes:
        experiments: look-ups over it.
        missing: inputs that are not there now, by file. Only these have a job: a file that is there is no output.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.experiments = Experiments(configuration)
        self._storage = configuration.storage
        entries = configuration.inputs.values()
        self.missing = {entry.file: entry for entry in entries if not os.path.exists(entry.file)}
        self._resources = functools.cache(functools.partial(resources, self.experiments))

    def owned(self, rule: str) -> Paths:
        """No file; exits unless the experiment exists, has what `rule` needs, and owns its artifact."""

        @exits_on_config_error
        def check(wildcards: Wildcards) -> list[str]:
            name = wildcards.experiment
            owner = self.experiments.owner(name, rule)
            if owner != name:
                path = self.experiments.path(name, rule, _block(wildcards) or (0, 0))
                raise ConfigError(f'"{name}" shares this artifact with "{owner}": ask for results/{path}')
            return []

        return check

    def reads(self, rule: str, *sources: str, number: int = 0) -> Paths:
        """Path of the artifact that `rule` reads of the first of `sources` that it reads at all, else nothing.

        It is the experiment's own or its ancestor's. Of blocks of shards it is that of the job; all, where the job has
        none. `number` chooses among the files of an artifact.
        """

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> str | list[str]:
            name = wildcards.experiment
            upstream = self.experiments.upstream(name, rule)
            source = next((source for source in sources if (source, name) in upstream), None)
            if source is None:
                return []
            if not RULES[source].blocks:
                return self._path(name, source, number=number)
            block = _block(wildcards)
            if block is not None:
                return self._path(name, source, block)
            return [self._path(name, source, each) for each in self.experiments.blocks(name, source)]

        return look_up

    def _path(self, experiment: str, rule: str, block: tuple[int, int] = (0, 0), number: int = 0) -> str:
        return f"results/{self.experiments.path(experiment, rule, block, number)}"

    @exits_on_config_error
    def start(self, wildcards: Wildcards) -> str | list[str]:
        """The teacher file that initialises the networks of a distillation, where it is not the teacher."""
        name = self.experiments.section(wildcards.experiment, "distill").start
        return self._path(name, "teacher") if name else []

    @exits_on_config_error
    def trained_on(self, wildcards: Wildcards) -> str | list[str]:
        """The teacher whose images the reference is of, where files of images were read for both."""
        sections = self.experiments.sections(wildcards.experiment)
        images = getattr(sections.dataset, "kind", "") == "images" and getattr(sections.teacher, "kind", "") == "train"
        compared = sections.reference is not None and sections.reference.moments is None
        return self._path(wildcards.experiment, "teacher") if images and compared else []

    def files(self, key: str) -> Paths:
        """The file or files from outside that the section `key` names, or nothing."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> str | list[str]:
            entry, name = self._section(wildcards, key), f"{wildcards.experiment}.{key}"
            if hasattr(entry, "files"):
                return [self._present(each, f"{name}.files[{number}]") for number, each in enumerate(entry.files)]
            return self._present(entry, name) if hasattr(entry, "file") else []

        return look_up

    @exits_on_config_error
    def distance_weights(self, wildcards: Wildcards) -> str | list[str]:
        """Weights of the distance of images that a method's losses use, or nothing."""
        entry = self.experiments.section(wildcards.experiment, "distill").method.distance()
        name = f"{wildcards.experiment}.distill.method"
        return self._present(entry, name) if getattr(entry, "file", None) else []

    def folder(self, key: str) -> Paths:
        """Configurations and weights in the folder of the section `key`, as diffusers saved them, or nothing."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> list[str]:
            folder = getattr(self._section(wildcards, key), "folder", None)
            if folder is None:
                return []
            paths = [path for kind in SAVED for path in sorted(Path(folder).rglob(f"*.{kind}"))]
            if not any(path.suffix == ".safetensors" for path in paths):
                name = f"{wildcards.experiment}.{key}.folder"
                raise ConfigError(f"{name}: {folder} is no folder with JSON and safetensors files")
            return [str(path) for path in paths if not path.name.startswith(".")]

        return look_up

    def source(self, key: str, flag: str = "--source") -> Text:
        """`--source PATH` where the section `key` names a file or folder, else nothing."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> str:
            entry = self._section(wildcards, key)
            path = getattr(entry, "file", None) or getattr(entry, "folder", None)
            return f"{flag} {shlex.quote(path)}" if path else ""

        return look_up

    @exits_on_config_error
    def dataset(self, wildcards: Wildcards) -> list[str]:
        """Folders, label file and newest file of a dataset of images.

        A file that is added, removed or replaced changes its folder; one that is overwritten is the newest.
        """
        entry = self.experiments.sections(wildcards.experiment).dataset
        if entry is None or entry.kind != "images":
            return []
        if not os.path.isdir(entry.folder):
            raise ConfigError(f"{wildcards.experiment}.dataset.folder: {entry.folder} is not a folder")
        return [*([entry.labels] if entry.labels.endswith(".csv") else []), *contents(entry.folder)]

    def spec(self, rule: str) -> Text:
        """The numbers of a job as canonical JSON: one string, so that any change reruns the job and only that."""
        spec = self.experiments.spec
        return exits_on_config_error(lambda wildcards: as_text(spec(wildcards.experiment, rule, _block(wildcards))))

    def cadence(self, rule: str) -> Callable[[Wildcards, Any], str]:
        """How often a training writes; another cadence trains nothing anew."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards, output: Any) -> str:
            training = self.experiments.training(wildcards.experiment, rule)
            cadence = training.cadence() if training else {}
            return as_text({"cadence": cadence} if training and rule == "teacher" else cadence)

        return look_up

    def storage(self, wildcards: Wildcards, output: Any) -> str:
        """Where shards of pairs lie when they are not in results/; another storage makes nothing anew."""
        return as_text({"storage": self._storage.settings("results")} if self._storage else {})

    def fetch_spec(self, wildcards: Any) -> str:
        """Where a missing input comes from, and what is known of it."""
        entry = self.missing[wildcards.file]
        return as_text({"url": entry.url, "sha256": entry.sha256, "size": entry.size})

    def resource(self, name: str) -> Callable[[Wildcards, int, str], int | str | None]:
        """One of `Resources` of a job of any rule, such as "mem_mb"."""
        asked = self._resources
        return exits_on_config_error(
            lambda wildcards, attempt, rulename: getattr(asked(wildcards.experiment, rulename, attempt), name)
        )

    def _section(self, wildcards: Wildcards, key: str) -> Any:
        """The section `key`, such as "sample.prompts", or None."""
        section: Any = self.experiments.sections(wildcards.experiment)
        for name in key.split("."):
            section = getattr(section, name, None)
        return section

    def _present(self, entry: Any, name: str) -> str:
        """The file of an entry of the configuration; exits unless it is there or can be fetched."""
        file, sha256 = str(entry.file), entry.sha256
        if file not in self.missing and not os.path.exists(file):
            digest = f" with sha256 {sha256}" if sha256 else ""
            raise ConfigError(
                f"{name}.file: {file} is missing; put the file{digest} there, or name its URL below inputs"
            )
        return file


def existing_scores(wildcards: Wildcards) -> list[str]:
    """Scores of the experiment that are there, for the card of its pipeline; to Snakemake they are no inputs."""
    names = [f"results/{wildcards.experiment}/{score}.json" for score in ("fid", "clip")]
    return [name for name in names if os.path.exists(name)]


def flag(name: str) -> Callable[[Wildcards, Mapping[str, str]], str]:
    """`--name FILE` where the input `name` is a file, nothing where it is not."""
    switch = f"--{name.replace('_', '-')}"
    return lambda wildcards, input: f"{switch} {shlex.quote(input[name])}" if input.get(name) else ""


def braced(wildcards: Wildcards, input: Sequence[str]) -> str:
    """Blocks as one word of bash, their folder once: a command, which is one word to the kernel, may have 128 KiB."""
    paths = [Path(path) for path in input]
    names = ",".join(path.stem for path in paths)
    return f"{shlex.quote(str(paths[0].parent))}/{f'{{{names}}}' if len(paths) > 1 else names}{paths[0].suffix}"


@functools.cache
def contents(folder: str) -> list[str]:
    """All folders below a folder, itself first, and the file that was written last; hidden files do not count."""
    folders: list[str] = []
    newest: tuple[int, str] = (0, "")
    for place, _, names in os.walk(folder):
        folders.append(place)
        paths = [os.path.join(place, name) for name in names if not name.startswith(".")]
        newest = max([newest, *((os.stat(path).st_mtime_ns, path) for path in paths if os.path.isfile(path))])
    return sorted(folders) + [path for path in newest[1:] if path]


def _block(wildcards: Wildcards) -> tuple[int, int] | None:
    """First and last shard of a job, None where the rule makes no shards."""
    first = wildcards.get("first")
    return None if first is None else (int(first), int(wildcards.get("last")))


def as_text(value: Any) -> str:
    """Canonical JSON, as `provenance.files` writes it, which this package may not import; a test compares them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
