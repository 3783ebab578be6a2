"""Look-ups in the configuration for the rules: methods that return functions of wildcards, which Snakemake calls.

A rule passes names of rules, as in `provider.reads("pairs", "prompts")`, or of sections, as in
`provider.source("reference.moments")`. A function of the wildcards alone gives an input, or a parameter whose change
reruns the job. The value of a function that also takes the input or output may change without a rerun.
"""

from __future__ import annotations

import ast
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from dmd.config import printing, source_files
from dmd.config.artifacts import Experiments
from dmd.config.experiment import INPUTS
from dmd.config.inheritance import Configuration
from dmd.config.messages import ConfigError
from dmd.config.methods.call_times import FlowEulerTimes, LcmTimes
from dmd.config.missing_files import Missing, missing_files, named_paths
from dmd.config.resources import resources
from dmd.config.rule_table import RULES
from dmd.config.section_base import FULL_LENGTH, canonical_json
from dmd.config.sections import IMPORTED, FlowSolver, IdxDataset, ScheduledSolver
from dmd.config.source_files import Listing

P = ParamSpec("P")
T = TypeVar("T")
SECTIONS = (  # those that name files from outside
    *("dataset", "teacher", "teacher.tiny_autoencoder", "reference.features", "reference.moments", "prompts"),
    *("sample.prompts", "sample.lora", "evaluate.clip", "distill.method"),
)
MONITOR = {  # key for what the monitor of a distillation reads of a section -> attribute of the experiment, key
    "distill.monitor.features": ("monitor_features", "reference.features"),
    "distill.monitor.clip": ("monitor_clip", "evaluate.clip"),
}
SECRET_URLS = "DMD_SECRET_URLS"  # environment variable


class Wildcards(Protocol):
    """Wildcards of a job; `first` and `last` only if it makes or reads a block of shards."""

    experiment: str

    def get(self, name: str) -> Any: ...


Paths = Callable[[Wildcards], str | list[str]]
Text = Callable[[Wildcards], str]
Recorded = Callable[[str], Sequence[str] | None]


def exits_on_config_error(function: Callable[P, T]) -> Callable[P, T]:
    """Turns a ConfigError of `function` into an exit with its message, without Snakemake's traceback."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return function(*arguments, **keywords)
        except ConfigError as error:
            sys.exit(printing.lines(f"error: {error}"))

    return call


class RuleLookups:
    """Look-ups in one configuration, for the workflow's rules.

    Attributes:
        experiments: look-ups by experiment.
        downloads: entries of `inputs` with a URL whose file does not exist yet, by file: outputs of rule fetch.
        missing: files and folders from outside that do not exist, by path. Those that no run downloads are outputs of
            rule missing, which makes none.
        gone: those of them that an artifact, by path, was made from; a job that makes it again needs them.
    """

    def __init__(self, configuration: Configuration, recorded: Recorded = lambda path: None) -> None:
        """`recorded` gives the parameters with which Snakemake made a file, as it keeps them: the repr of each."""
        self.experiments = Experiments(configuration)
        self._recorded = recorded
        self._storage = configuration.storage
        entries = configuration.inputs.values()
        self.downloads = {entry.path: entry for entry in entries if entry.url and not os.path.exists(entry.path)}
        self.missing = missing_files(configuration)
        self._parts: dict[str, list[str]] = {}  # those that lie in a folder which is there, by folder
        for path, each in self.missing.items():
            if each.folder is not None:
                self._parts.setdefault(each.folder, []).append(path)
        self.gone: dict[str, list[Missing]] = {}
        self._fetchable = {entry.path for entry in entries if entry.url}
        for file in self.downloads:
            if not source_files.is_below(real := os.path.realpath(file), os.path.realpath(INPUTS)):
                raise ConfigError(
                    f"inputs: {printing.piece(file)} leads through a link to {printing.piece(real)}, outside "
                    f"{INPUTS}/, the only folder to download to: remove the link"
                )
        self._blocks = functools.cache(self.experiments.blocks_of_owner)
        self._resources = functools.cache(functools.partial(resources, self.experiments))

    def owned(self, rule: str) -> Paths:
        """An input function without files; exits unless the experiment exists, has what `rule` needs and owns it.

        It also exits for a block of shards that no experiment has.
        """

        @exits_on_config_error
        def check(wildcards: Wildcards) -> list[str]:
            name, block = wildcards.experiment, _block(wildcards)
            owner = self.experiments.owner(name, rule)
            if owner != name:
                path = self.experiments.path(name, rule, block or (0, 0))
                raise ConfigError(f'"{name}" shares this artifact with "{owner}": ask for results/{path}')
            if block is not None and block not in self._blocks(name, rule):
                own = [f"{first:05d}-{last:05d}" for first, last in self.experiments.blocks(name, rule)]
                raise ConfigError(
                    f"{self._path(name, rule, block)}: there is no such block of shards; blocks of {rule} go from "
                    f"{own[0]} to {own[-1]}, see shards_per_job"
                )
            return []

        return check

    def reads(self, rule: str, *sources: str, number: int = 0) -> Paths:
        """Path of the artifact that `rule` reads from the first of `sources` that it depends on; nothing if from none.

        An ancestor may own the artifact. Where `sources` make blocks of shards, the result is the block of the job, or
        all blocks if the job has none. `number` is the index among the files of the artifact.
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
    def student(self, wildcards: Wildcards) -> str | list[str]:
        """The student's file of another experiment, if the teacher is made from it."""
        teacher = self.experiments.section(wildcards.experiment, "teacher")
        return self._path(teacher.name, "distill") if teacher.kind == "experiment" else []

    @exits_on_config_error
    def trained_on(self, wildcards: Wildcards) -> str | list[str]:
        """The teacher's file if teacher and reference were both made from files of a dataset, else nothing."""
        sections = self.experiments.sections(wildcards.experiment)
        files = getattr(sections.dataset, "kind", "") in ("images", "idx", "glyphs")
        images = files and getattr(sections.teacher, "kind", "") == "train"
        compared = sections.reference is not None and sections.reference.moments is None
        return self._path(wildcards.experiment, "teacher") if images and compared else []

    def files(self, rule: str, *keys: str) -> Paths:
        """Files and folders of the sections `keys` that rule fetch makes or that are missing; exits for unusable ones.

        The others are no inputs, see `source_files`: `watched` reruns the job when one of them changes. Missing ones
        are none, either, while the artifact of `rule` has been made from them and is not made anew.
        """

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> list[str]:
            found = []
            for key in keys:
                try:
                    found += self._usable(wildcards, key)
                except ConfigError:
                    raise ConfigError("\nerror: ".join(self._faults(wildcards))) from None
            if self._kept(wildcards, rule, keys) is not None:
                found = [path for path in found if path not in self.missing]
            return [path for path in found if path in self.missing or self._fetched(path)]

        return look_up

    def _usable(self, wildcards: Wildcards, key: str) -> list[str]:
        """Paths that a section names; ConfigError unless each can be used, or is missing."""
        entry, name = self._section(wildcards, key), _full_key(wildcards, key)
        self._listing(entry, name)
        folder = None if isinstance(entry, IdxDataset) else getattr(entry, "folder", None)
        parts = self._parts.get(folder or "", [])
        return [*([folder] if folder else []), *parts, *(file for file, _ in self._files(entry, name))]

    def _faults(self, wildcards: Wildcards) -> Iterator[str]:
        """What is wrong with files of an experiment, section by section."""
        for key in SECTIONS:
            try:
                self._usable(wildcards, key)
            except ConfigError as error:
                yield str(error)

    def watched(self, rule: str, *keys: str) -> Text:
        """A digest that changes when a file of the sections `keys` changes; "" if there is none.

        It leaves out files whose whole sha256 the configuration has: a stage that reads another file refuses it, so
        the artifact stays valid whatever happens to the file. It stays the same while files are missing from which the
        artifact of `rule` has been made.
        """

        @exits_on_config_error
        def look_up(wildcards: Wildcards) -> str:
            if (kept := self._kept(wildcards, rule, keys)) is not None:
                return kept
            parts = []
            for key in keys:
                entry, name = self._section(wildcards, key), _full_key(wildcards, key)
                pairs = [(file, sha256) for file, sha256 in self._files(entry, name) if not self._fetched(file)]
                files = [file for file, sha256 in pairs if len(sha256 or "") < FULL_LENGTH]
                listing = self._listing(entry, name)
                parts += [*([source_files.identity(files)] if files else []), *([listing.digest] if listing else [])]
            return "-".join(parts)

        return look_up

    def _kept(self, wildcards: Wildcards, rule: str, keys: Sequence[str]) -> str | None:
        """What `watched` was when an artifact was made, if files that it was made from are missing now.

        None if none is missing, or if the artifact does not exist or was made from another spec.
        """
        sections = [entry for key in keys if (entry := self._section(wildcards, key)) is not None]
        named = [path for entry in sections for _, path, _ in named_paths(entry, "")]
        paths = [part for path in named for part in (path, *self._parts.get(path, []))]
        gone = [each for path in paths if (each := self.missing.get(path)) and not each.is_downloaded]
        if not gone or not self.experiments.has(wildcards.experiment, rule):
            return None
        artifact = self._path(wildcards.experiment, rule, _block(wildcards) or (0, 0))
        recorded = set(self._recorded(artifact) or [])
        own = {repr(self.spec(rule)(wildcards)), repr(self.version(rule)(wildcards))}
        rest = recorded - own
        if not os.path.exists(artifact) or not own <= recorded or len(rest) != 1:
            return None
        self.gone[artifact] = gone
        return str(ast.literal_eval(rest.pop()))

    def source(self, key: str, flag: str = "--source") -> Callable[[Wildcards, Any], str]:
        """`flag` with the paths of the section `key`, or nothing; a change of it alone reruns nothing."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards, output: Any) -> str:
            entry = self._section(wildcards, key)
            folder = getattr(entry, "folder", None)
            paths = [folder] if folder else [file for file, _ in self._files(entry, key)]
            # A path that begins with a dash would be taken for a flag.
            return (
                shlex.join([flag, *(f"./{path}" if path.startswith("-") else path for path in paths)]) if paths else ""
            )

        return look_up

    def spec(self, rule: str) -> Text:
        """The spec of a job as canonical JSON, one string: Snakemake reruns the job when it changes."""
        spec = self.experiments.spec
        return exits_on_config_error(
            lambda wildcards: canonical_json(spec(wildcards.experiment, rule, _block(wildcards)))
        )

    def version(self, rule: str) -> Text:
        """The versions of a rule, and a digest of all that its inputs are made from; see `Experiments.lineage`."""
        versions, lineage = self.experiments.versions, self.experiments.lineage

        def look_up(name: str) -> str:
            return " ".join([*map(str, versions(name, rule)), lineage(name, rule)]).rstrip()

        return exits_on_config_error(lambda wildcards: look_up(wildcards.experiment))

    def cadence(self, rule: str) -> Callable[[Wildcards, Any], str]:
        """How often a training writes checkpoints, grids and log rows; a change reruns nothing."""

        @exits_on_config_error
        def look_up(wildcards: Wildcards, output: Any) -> str:
            training = self.experiments.training(wildcards.experiment, rule)
            cadence = training.cadence() if training else {}
            return canonical_json({"cadence": cadence} if training and rule != "distill" else cadence)

        return look_up

    @exits_on_config_error
    def solvers(self, wildcards: Wildcards, output: Any) -> str:
        """What an experiment asks of schedulers with its imported teacher, by key, which the import tries.

        These are solvers, and the calls of a student. Those of other experiments that share the teacher are tried where
        they begin. A change reruns nothing.
        """
        name, solvers, calls = wildcards.experiment, {}, {}
        sections = self.experiments.sections(name)
        if getattr(sections.teacher, "kind", "") in IMPORTED:
            for key, section in {"pairs": sections.pairs, "sample": sections.sample}.items():
                if section is not None and isinstance(section.solver, ScheduledSolver | FlowSolver):
                    solvers[f"{name}.{key}.solver"] = section.solver.with_defaults()
            distill = sections.distill
            times = getattr(distill.method, "times", None) if distill is not None and distill.start is None else None
            if isinstance(times, LcmTimes | FlowEulerTimes) and distill is not None:
                calls[f"{name}.distill.method"] = {
                    "calls": distill.method.final_calls(),
                    "times": times.with_defaults(),
                }
        return canonical_json(({"solvers": solvers} if solvers else {}) | ({"calls": calls} if calls else {}))

    def storage(self, wildcards: Wildcards, output: Any) -> str:
        """The storage of shards of pairs that are not in results/; a change reruns nothing."""
        return canonical_json({"storage": self._storage.settings()} if self._storage else {})

    def fetch_spec(self, wildcards: Any) -> str:
        """URL without secrets, sha256 and size of a missing input; Snakemake prints and keeps parameters."""
        entry = self.downloads[wildcards.file]
        url = printing.without_secrets(str(entry.url))
        return canonical_json({"url": url, "sha256": entry.sha256, "size": entry.size})

    def environment(self) -> dict[str, str]:
        """Variables for jobs, with what no command may hold: the whole URLs of inputs that have secrets, by file."""
        urls = {file: str(entry.url) for file, entry in self.downloads.items()}
        secret = {file: url for file, url in urls.items() if printing.without_secrets(url) != url}
        return {SECRET_URLS: canonical_json(secret)} if secret else {}

    def resource(self, name: str) -> Callable[[Wildcards, int, str], int | str | None]:
        """One of `Resources` of a job of any rule, such as "mem_mb"."""
        asked = self._resources
        return exits_on_config_error(
            lambda wildcards, attempt, rulename: getattr(asked(wildcards.experiment, rulename, attempt), name)
        )

    def _section(self, wildcards: Wildcards, key: str) -> Any:
        """The section `key`, such as "sample.prompts", or None; that of a method is its image distance (LPIPS)."""
        section: Any = self.experiments.sections(wildcards.experiment)
        if key in MONITOR:
            return getattr(section, MONITOR[key][0])
        for name in key.split("."):
            section = getattr(section, name, None)
        return section.distance() if key == "distill.method" and section else section

    def _files(self, entry: Any, name: str) -> list[tuple[str, str | None]]:
        """Files that a section names, and their sha256; exits unless each can be read, or is missing."""
        named = named_paths(entry, name) if entry else ()
        entries = [(path, sha256, key) for key, path, sha256 in named if not key.endswith(".folder")]
        whole = None  # digest of all files together
        if isinstance(entry, IdxDataset):
            whole = entry.sha256
            is_missing = not os.path.lexists(entry.folder) and all(file in self.missing for file, *_ in entries)
            if not is_missing and not os.path.isdir(entry.folder):
                cause = (source_files.fault(entry.folder) or "is a file").removesuffix(", not a file")
                raise ConfigError(f"{name}.folder: {printing.piece(entry.folder)} is not a folder: it {cause}")
        faults = []
        for file, digest, key in entries:
            if file not in self.missing and file not in self.downloads and (fault := source_files.fault(file)):
                pinned = f" with sha256 {digest}" if digest else ""
                faults.append(f"{key}: {printing.piece(file)} {fault}; put the file{pinned} there")
        if faults:
            raise ConfigError("\nerror: ".join(faults))
        return [(file, whole or digest) for file, digest, _ in entries]

    def _listing(self, entry: Any, name: str) -> Listing | None:
        """The files in the folder of a section; None if it names no folder, or pins its digest."""
        folder = getattr(entry, "folder", None)
        if folder is None or folder in self.missing or folder in self._parts or isinstance(entry, IdxDataset):
            return None
        try:
            found = _list(folder, images=getattr(entry, "kind", "") == "images")
        except ConfigError as error:
            raise ConfigError(f"{name}.folder: {error}") from None
        return found if len(getattr(entry, "sha256", None) or "") < FULL_LENGTH else None

    def _fetched(self, file: str) -> bool:
        """Whether rule fetch makes the file, or made it and it was not replaced since then."""
        return file in self.downloads or (file in self._fetchable and source_files.was_fetched(file))


@functools.cache
def _list(folder: str, *, images: bool) -> Listing:
    """The files in a folder of images or of a saved pipeline."""
    if images:
        return source_files.images(folder)
    found = source_files.listing(folder, source_files.SAVED)
    if not any(name.endswith(".safetensors") for name in found.names):
        raise ConfigError(f"{printing.piece(folder)} is no folder with JSON and safetensors files")
    return found


def existing_scores(wildcards: Wildcards) -> list[str]:
    """Existing score files of the experiment, for the model card of its pipeline; they are not inputs of the job."""
    names = [f"results/{wildcards.experiment}/{score}.json" for score in ("fid", "clip", "retrieval")]
    return [name for name in names if os.path.exists(name)]


def flag(name: str) -> Callable[[Wildcards, Mapping[str, str]], str]:
    """`--name FILE` where the input `name` is a file, nothing where it is not."""
    switch = f"--{name.replace('_', '-')}"
    return lambda wildcards, input: f"{switch} {shlex.quote(input[name])}" if input.get(name) else ""


def braced(wildcards: Wildcards, input: Sequence[str]) -> str:
    """Paths of blocks as one brace expansion: Linux limits an argument, and so the whole shell command, to 128 KiB."""
    paths = [Path(path) for path in input]
    names = ",".join(path.stem for path in paths)
    return f"{shlex.quote(str(paths[0].parent))}/{f'{{{names}}}' if len(paths) > 1 else names}{paths[0].suffix}"


def _full_key(wildcards: Wildcards, key: str) -> str:
    """The key of a section in the configuration, for messages."""
    return f"{wildcards.experiment}.{MONITOR[key][1] if key in MONITOR else key}"


def _block(wildcards: Wildcards) -> tuple[int, int] | None:
    """First and last shard of a job, None where the rule makes no shards."""
    first = wildcards.get("first")
    return None if first is None else (int(first), int(wildcards.get("last")))
