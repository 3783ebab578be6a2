# Look-up of specs and paths; nothing else. Rules call these with the name of a rule.
import functools
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from dmd.artifacts.files import canonical_json, sha256
from dmd.checks import suggestion
from dmd.config import ConfigError, read_yaml, resolve
from dmd.experiments import Experiments
from dmd.versions import VERSIONS

ROOT = Path(workflow.basedir)
PAPER = read_yaml(ROOT / "workflow" / "resources" / "paper.yaml")  # published tables


def refuse(message):
    """Ends with one message; an exception would reach the user wrapped in Snakemake's traceback."""
    sys.exit(f"error: {message}")


def settings():
    """The whole configuration, merged and checked."""
    try:
        found = resolve(config, read_yaml(ROOT / "workflow" / "schemas" / "config.schema.yaml"))
    except ConfigError as error:
        refuse(f"the configuration cannot be used\n{error}")
    for name, table in found["tables"].items():
        if (paper := table["paper"]) is not None and paper not in PAPER:
            refuse(f'tables.{name}.paper: unknown table "{paper}"{suggestion(paper, PAPER)}; known: {", ".join(PAPER)}')
    return found


SETTINGS = settings()
EXPERIMENTS = Experiments(SETTINGS)


def prefix():
    """Shell prelude: the python that runs Snakemake comes first, unless conda provides one; `dmd` can be imported."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    lines = ["set -euo pipefail", f"export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}"]
    if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
        lines.append(f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"')
    return "; ".join(lines).replace("{", "{{").replace("}", "}}") + "; "


def owned(rule):
    """No file; stops unless the experiment exists, has what `rule` needs, and owns its artifact."""

    def check(wildcards):
        try:
            owner = EXPERIMENTS.owner(wildcards.experiment, rule)
        except ConfigError as error:
            refuse(error)
        if owner != wildcards.experiment:
            path = EXPERIMENTS.path(wildcards.experiment, rule, block(wildcards) or (0, 0))
            refuse(f'"{wildcards.experiment}" shares this artifact with "{owner}": ask for results/{path}')
        return []

    return check


def block(wildcards):
    """First and last shard of a job, None where the rule makes no shards."""
    return (int(wildcards.first), int(wildcards.last)) if "first" in wildcards.keys() else None


def spec(rule):
    """The numbers of a job as canonical JSON: one string, so that any change of it reruns the job and only that."""
    return lambda wildcards: canonical_json(EXPERIMENTS.spec(wildcards.experiment, rule, block(wildcards)))


def artifact(rule):
    """Path of the artifact of `rule` that an experiment uses, its own or its ancestor's."""
    return lambda wildcards: f"results/{EXPERIMENTS.path(wildcards.experiment, rule)}"


def block_of(rule):
    """Path of the block that has the shards of this job."""
    return lambda wildcards: f"results/{EXPERIMENTS.path(wildcards.experiment, rule, block(wildcards))}"


def blocks(rule):
    """Paths of all blocks of `rule`."""
    return lambda wildcards: [
        f"results/{EXPERIMENTS.path(wildcards.experiment, rule, each)}"
        for each in EXPERIMENTS.blocks(wildcards.experiment, rule)
    ]


def sampled(wildcards):
    """The denoiser that the samples come from: teacher or generator."""
    source = EXPERIMENTS.section(wildcards.experiment, "sample")["from"]
    return artifact("teacher" if source == "teacher" else "distill")(wildcards)


def start(wildcards):
    """The teacher file that initialises generator and fake denoiser, where it is not the teacher."""
    name = EXPERIMENTS.section(wildcards.experiment, "distill")["start"]
    return f"results/{EXPERIMENTS.path(name, 'teacher')}" if name else []


def given(section, *keys):
    """A file from outside that the config names under `section` or a key below it, or nothing."""

    def look_up(wildcards):
        entry = EXPERIMENTS.section(wildcards.experiment, section)
        for key in keys:
            entry = entry.get(key) or {}
        file = entry.get("file", [])
        if file and file not in MISSING and not os.path.exists(file):
            place, sha256 = ".".join([wildcards.experiment, section, *keys]), entry["sha256"]
            refuse(
                f"{place}.file: {file} is missing; put the file{f' with sha256 {sha256}' if sha256 else ''} there, "
                "or name its URL below inputs"
            )
        return file

    return look_up


def missing_inputs():
    """Inputs by file that are not there now. Only these have a job: what is in place is a source, never an output."""
    return {entry["file"]: entry for entry in SETTINGS["inputs"].values() if not os.path.exists(entry["file"])}


def fetch_spec(wildcards):
    """Where a missing input comes from, and what is known of it."""
    return canonical_json({key: MISSING[wildcards.file][key] for key in ("url", "sha256", "size")})


def teacher_folder(wildcards):
    """Configurations and weights of a teacher that diffusers saved, or nothing."""
    folder = EXPERIMENTS.section(wildcards.experiment, "teacher").get("folder")
    if folder is None:
        return []
    found = [path for kind in ("json", "safetensors") for path in sorted(Path(folder).rglob(f"*.{kind}"))]
    if not found:
        refuse(f"{wildcards.experiment}.teacher.folder: {folder} is no folder with JSON and safetensors files")
    return [str(path) for path in found if not path.name.startswith(".")]


def teacher_source(wildcards):
    """`--source PATH` where the teacher comes from a file or folder, else nothing."""
    section = EXPERIMENTS.section(wildcards.experiment, "teacher")
    path = section.get("file") or section.get("folder")
    return f"--source {shlex.quote(path)}" if path else ""


def taught_with(wildcards):
    """The dataset, for a teacher that is trained on it."""
    return dataset(wildcards) if EXPERIMENTS.section(wildcards.experiment, "teacher")["kind"] == "train" else []


def dataset(wildcards):
    """Folders, label file and newest file of a dataset of images.

    A file that is added, removed or replaced changes its folder; one that is overwritten in place is the newest then.
    """
    entry = EXPERIMENTS.whole(wildcards.experiment).get("dataset", {})
    if entry.get("kind") != "images":
        return []
    if not os.path.isdir(entry["folder"]):
        refuse(f"{wildcards.experiment}.dataset.folder: {entry['folder']} is not a folder")
    files = [entry["labels"]] if entry["labels"].endswith(".csv") else []
    return files + contents(entry["folder"])


@functools.cache
def contents(folder):
    """All folders below a folder, itself first, and the file that was written last; hidden files do not count."""
    folders, newest = [], (0, None)
    for place, _, names in os.walk(folder):
        folders.append(place)
        paths = [os.path.join(place, name) for name in names if not name.startswith(".")]
        newest = max([newest, *((os.stat(path).st_mtime_ns, path) for path in paths if os.path.isfile(path))])
    return sorted(folders) + list(filter(None, newest[1:]))


def trained_on(wildcards):
    """The teacher whose images the reference is of, where files of images were read for both."""
    whole = EXPERIMENTS.whole(wildcards.experiment)
    images = whole.get("dataset", {}).get("kind") == "images" and whole.get("teacher", {}).get("kind") == "train"
    return artifact("teacher")(wildcards) if images and compared_with(wildcards) else []


def compared_with(wildcards):
    """What the real images are read from; nothing where their moments are given."""
    return [] if "moments" in EXPERIMENTS.section(wildcards.experiment, "reference") else dataset(wildcards)


def flag(name):
    """`--name FILE` where the input `name` is a file, nothing where it is not."""
    return lambda wildcards, input: f"--{name} {shlex.quote(input[name])}" if input.get(name) else ""


def gpus(wildcards):
    """GPUs of a job: an experiment with `device: cpu` asks for none."""
    return int(EXPERIMENTS.whole(wildcards.experiment)["device"] != "cpu")


def cores(wildcards):
    """Threads of torch, from the config: their number changes bytes."""
    return EXPERIMENTS.whole(wildcards.experiment)["threads"]


def processes(wildcards):
    """Processes that share the batches of a distillation."""
    return EXPERIMENTS.section(wildcards.experiment, "distill")["processes"]


def memory(megabytes, rule=None):
    """Megabytes, growing with each attempt; `resources` of the experiment may say another number for `rule`."""
    return lambda wildcards, attempt: asked(wildcards, rule).get("memory_mb", megabytes) * attempt


def minutes(number, rule):
    """Minutes that a job may take, unless `resources` of the experiment says other hours."""
    return lambda wildcards: (
        round(60 * asked(wildcards, rule)["hours"]) if "hours" in asked(wildcards, rule) else number
    )


def asked(wildcards, rule):
    """What `resources` of the experiment says of a rule; no part of any spec."""
    return EXPERIMENTS.whole(wildcards.experiment)["resources"].get(rule, {}) if rule else {}


def listed(kind, name):
    """The entry `name` of `tables` or `charts`; stops where there is none."""
    entries = SETTINGS[kind]
    if name not in entries:
        known = ", ".join(entries) or "none"
        refuse(f'the configuration has no "{name}" below {kind}{suggestion(name, entries)}; {kind} are: {known}')
    return entries[name]


def scores(metric):
    """The metric files of each experiment of a table, in its order; those of rows with `run: false` are `shown`."""
    return lambda wildcards: scored(metric, listed("tables", wildcards.table)["rows"], runs)


def shown(metric, wildcards):
    """Metric files of rows with `run: false` that are there. To Snakemake they are no inputs, which it would update."""
    rows = listed("tables", wildcards.table)["rows"]
    found = scored(metric, rows, lambda row: not runs(row))
    return [path for path in found if path not in scored(metric, rows, runs) and os.path.exists(path)]


def scored(metric, rows, chosen):
    """Metric files of the experiments of chosen rows, each once, in order."""
    names = [name for row in rows if chosen(row) for name in row["experiments"]]
    return [f"results/{name}/{metric}.json" for name in dict.fromkeys(names)]


def runs(row):
    """Whether jobs may be started for a row of a table."""
    return row.get("run", True)


def table_spec(wildcards):
    """Rows of a table, each with its teacher, and the published ones to print beside them."""
    table = listed("tables", wildcards.table)
    rows = [{key: value for key, value in row.items() if key != "run"} | taught_by(row) for row in table["rows"]]
    return canonical_json({**table, "rows": rows, "paper": PAPER.get(table["paper"])})


def taught_by(row):
    """Owners of the teachers behind a row; rows of equal ones are compared with each other."""
    owners = {EXPERIMENTS.owner(name, "teacher") for name in row["experiments"] if EXPERIMENTS.has(name, "teacher")}
    return {"teacher": " ".join(sorted(owners))}


def points(wildcards):
    """Every point of a chart, a list of experiments, in order."""
    return [point for series in listed("charts", wildcards.chart)["series"] for point in series["points"]]


def chart_inputs(wildcards):
    """Scores of every experiment of a chart; for Figure 3 the classes, and the samples of each panel."""
    kind, names = listed("charts", wildcards.chart)["kind"], sum(points(wildcards), [])
    if kind != "figure3":
        return [f"results/{name}/fid.json" for name in names]
    panels = [EXPERIMENTS.path(point[0], "samples_manifest") for point in points(wildcards)]
    return [f"results/{name}/classes.json" for name in names] + [f"results/{path}" for path in panels]


def chart_spec(wildcards):
    """Kind, title and series of a chart, and what its kind needs besides."""
    chart = dict(listed("charts", wildcards.chart))
    if chart["kind"] == "pairs":
        chart["series"] = [
            {**series, "x": [num_pairs(point[0]) for point in series["points"]]} for series in chart["series"]
        ]
    if chart["kind"] == "figure3":
        chart["dataset"] = EXPERIMENTS.section(points(wildcards)[0][0], "dataset")
    return canonical_json(chart)


def num_pairs(experiment):
    """Pairs that an experiment distills with."""
    return EXPERIMENTS.section(experiment, "pairs")["num_pairs"]


def training_log(wildcards):
    """The table of the training that made the generator."""
    return f"results/{EXPERIMENTS.owner(wildcards.experiment, 'distill')}/distill/log.parquet"


def named(group):
    """Table, charts and pictures of a group: `demo` has demo.md, demo-*.png and pictures of each row's first seed."""

    def look_up(wildcards):
        if group not in SETTINGS["tables"]:
            refuse(f'the configuration has no table "{group}": add it, or ask for files such as results/NAME/fid.json')
        charts = [chart for chart in SETTINGS["charts"] if chart.startswith(f"{group}-")]
        return [
            f"results/tables/{group}.md",
            *(f"results/tables/{chart}.png" for chart in charts),
            *(f"results/{name}/pictures/grid.png" for name in pictured(SETTINGS["tables"][group]["rows"])),
        ]

    return look_up


def pictured(rows):
    """Owners of the pictures of each row's first seed, teachers apart."""
    experiments = [row["experiments"][0] for row in rows if runs(row)]
    try:
        return sorted({EXPERIMENTS.owner(name, "pictures") for name in experiments if EXPERIMENTS.distilled(name)})
    except ConfigError as error:
        refuse(error)


MISSING = missing_inputs()

shell.prefix(prefix())


wildcard_constraints:
    experiment="[a-z0-9][a-z0-9-]*",
    table="[a-z0-9][a-z0-9-]*",
    chart="[a-z0-9][a-z0-9-]*",
    first=r"\d{5}",
    last=r"\d{5}",
    file="|".join(map(re.escape, MISSING)) or "(?!)",
