# Look-up of specs and paths; nothing else. Rules call these with the name of a rule.
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from dmd.provenance.files import canonical_json, sha256
from dmd.config import RULES, ConfigError, Experiments, read_yaml, reading, resolve, suggestion
from dmd.config.rules import PIPELINE

ROOT = Path(workflow.basedir)
PAPER = read_yaml(ROOT / "workflow" / "resources" / "paper.yaml")  # published tables


def refuse(message):
    """Ends with one message; an exception would reach the user wrapped in Snakemake's traceback."""
    sys.exit(f"error: {message}")


def settings():
    """The whole configuration, merged and checked."""
    try:
        settings = resolve(written())
    except ConfigError as error:
        refuse(f"the configuration cannot be used\n{error}")
    for name, table in settings.tables.items():
        if (paper := table.paper) is not None and paper not in PAPER:
            refuse(f'tables.{name}.paper: unknown table "{paper}"{suggestion(paper, PAPER)}; known: {", ".join(PAPER)}')
    return settings


def written():
    """What Snakemake's `config` says, and what the files of it include: all of them are read once more, by our reader.

    As in Snakemake, --configfile goes over the file that the Snakefile names, and --config over both.
    """
    given = workflow.config_settings.configfiles
    own = [path for path in workflow.configfiles if path not in given]
    later = [path for path in given if not any(os.path.realpath(path) == os.path.realpath(each) for each in own)]
    if workflow.config_settings.replace_workflow_config:
        own = []
    whole = {}
    for path in [*own, *later]:
        reading.update(whole, reading.read_file(Path(path)))
    return reading.update(whole, workflow.config_settings.config)


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


def place(wildcards, output):
    """Where shards of pairs lie when they are not in results/. It depends on the output, and so is no parameter that
    Snakemake compares: another place makes nothing anew."""
    return canonical_json({"storage": SETTINGS.storage.settings("results")} if SETTINGS.storage else {})


def artifact(rule):
    """Path of the artifact of `rule` that an experiment uses, its own or its ancestor's."""
    return lambda wildcards: f"results/{EXPERIMENTS.path(wildcards.experiment, rule)}"


def part(rule):
    """Path of the artifact of `rule` where the experiment's teacher has such a part, or nothing."""
    return lambda wildcards: artifact(rule)(wildcards) if EXPERIMENTS.parts(wildcards.experiment, rule) else []


def block_of(rule):
    """Path of the block that has the shards of this job."""
    return lambda wildcards: f"results/{EXPERIMENTS.path(wildcards.experiment, rule, block(wildcards))}"


def blocks(rule):
    """Paths of all blocks of `rule`."""
    return lambda wildcards: [
        f"results/{EXPERIMENTS.path(wildcards.experiment, rule, each)}"
        for each in EXPERIMENTS.blocks(wildcards.experiment, rule)
    ]


def braced(wildcards, input):
    """Blocks as one word of bash, their folder once: a command, which is one word to the kernel, may have 128 KiB."""
    paths = [Path(path) for path in input]
    names = ",".join(path.stem for path in paths)
    return f"{shlex.quote(str(paths[0].parent))}/{f'{{{names}}}' if len(paths) > 1 else names}{paths[0].suffix}"


def read_by(rule, source):
    """Path of the artifact of rule `source` where the experiment's `rule` reads one, else nothing."""

    def look_up(wildcards):
        sources = [name for name, _ in EXPERIMENTS.upstream(wildcards.experiment, rule)]
        return artifact(source)(wildcards) if source in sources else []

    return look_up


def decoder(wildcards):
    """The autoencoder that latency is measured with, or nothing."""
    return read_by("latency", "autoencoder")(wildcards) or read_by("latency", "tiny_autoencoder")(wildcards)


def sampled(wildcards):
    """The denoiser that the samples come from: teacher or generator."""
    return artifact("distill" if EXPERIMENTS.distilled(wildcards.experiment) else "teacher")(wildcards)


def teacher_cadence(wildcards):
    """How often the training of a teacher writes, where it is trained here."""
    training = getattr(EXPERIMENTS.section(wildcards.experiment, "teacher"), "training", None)
    return {"cadence": training.cadence()} if training else {}


def start(wildcards):
    """The teacher file that initialises generator and fake denoiser, where it is not the teacher."""
    name = EXPERIMENTS.section(wildcards.experiment, "distill").start
    return f"results/{EXPERIMENTS.path(name, 'teacher')}" if name else []


def flag(name):
    """`--name FILE` where the input `name` is a file, nothing where it is not."""
    switch = f"--{name.replace('_', '-')}"
    return lambda wildcards, input: f"{switch} {shlex.quote(input[name])}" if input.get(name) else ""


def gpus(wildcards):
    """GPUs of a job: an experiment with `device: cpu` asks for none."""
    return int(EXPERIMENTS.whole(wildcards.experiment).device != "cpu")


def cores(wildcards):
    """Threads of torch, from the config: their number changes bytes."""
    return EXPERIMENTS.whole(wildcards.experiment).threads


def processes(wildcards):
    """Processes that share the batches of a distillation."""
    return EXPERIMENTS.section(wildcards.experiment, "distill").processes


def teacher_processes(wildcards):
    """Processes that share the batches of a teacher's training; 1 where it is not trained here."""
    training = getattr(EXPERIMENTS.section(wildcards.experiment, "teacher"), "training", None)
    return training.processes if training else 1


def nodes(wildcards):
    """Machines of a cluster that a distillation asks for."""
    return asked(wildcards, "distill").nodes


def per_node(wildcards):
    """Processes of a distillation on each machine."""
    return processes(wildcards) // nodes(wildcards)


def several_nodes(value):
    """A resource, or what it is of a job, that only a distillation on several machines asks for."""

    def resource(wildcards):
        if nodes(wildcards) == 1:
            return None
        return value(wildcards) if callable(value) else value

    return resource


def memory(megabytes, rule=None):
    """Megabytes, half of them more with each attempt; `resources` of the experiment may say another number for `rule`."""

    def look_up(wildcards, attempt):
        own = asked(wildcards, rule).memory_mb if rule else None
        return (own or megabytes) * (attempt + 1) // 2

    return look_up


def minutes(number, rule):
    """Minutes that a job may take, unless `resources` of the experiment says other hours."""
    return lambda wildcards: round(60 * asked(wildcards, rule).hours) if asked(wildcards, rule).hours else number


def asked(wildcards, rule):
    """What `resources` of the experiment says of a rule; no part of any spec."""
    return getattr(EXPERIMENTS.whole(wildcards.experiment).resources, rule)


def training_log(wildcards):
    """The table of the training that made the generator."""
    return f"results/{EXPERIMENTS.owner(wildcards.experiment, 'distill')}/distill/log.parquet"


def measured(wildcards):
    """Scores of the experiment that are there, for the card of its pipeline; to Snakemake they are no inputs."""
    names = [f"results/{wildcards.experiment}/{score}.json" for score in ("fid", "clip")]
    return [name for name in names if os.path.exists(name)]


shell.prefix(prefix())

# Before its time limit SLURM sends SIGUSR1 to every process of a job; the stage heeds it, Snakemake must outlive it.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)


wildcard_constraints:
    experiment="[a-z0-9][a-z0-9-]*",
    table="[a-z0-9][a-z0-9-]*",
    chart="[a-z0-9][a-z0-9-]*",
    first=r"\d{5}",
    last=r"\d{5}",
