# Reads the configuration, makes `provider` and `tables`, the look-ups of the rules, and sets the prefix of all shells.
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.io import IOFile
from snakemake_interface_executor_plugins.settings import DeploymentMethod

from dmd.config import RULES, ConfigError, command_line, read_yaml, reading, resolve
from dmd.config.missing_files import listed
from dmd.config.rule_lookups import RuleLookups, exits_on_config_error
from dmd.config.table_lookups import TableLookups
from dmd.provenance import runs
from dmd.provenance.files import sha256

ROOT = Path(workflow.basedir)
PAPER = ROOT / "workflow" / "resources" / "published_values.yaml"  # published tables


def merged_files():
    """The content of Snakemake's `config` and of the included files; `dmd.config.reading` reads all files again.

    As in Snakemake, --configfile overrides the file that the Snakefile names, and --config overrides both.
    """
    command_line.check_arguments(workflow.config_settings.config_args or [])
    given = workflow.config_settings.configfiles
    own = [path for path in workflow.configfiles if path not in given]
    later = [path for path in given if not any(os.path.realpath(path) == os.path.realpath(each) for each in own)]
    if workflow.config_settings.replace_workflow_config:
        own = []
    whole = {}
    for path in [*own, *later]:
        reading.update(whole, reading.read_file(Path(path)))
    return reading.update(whole, workflow.config_settings.config)


@exits_on_config_error
def provider_and_tables():
    """The look-ups of the rules: in experiments, and in tables and charts."""
    try:
        configuration = resolve(merged_files())
    except ConfigError as error:
        raise ConfigError(f"the configuration cannot be used\n{error}")
    provider = RuleLookups(configuration, lambda path: workflow.persistence.params(IOFile(path)))
    return provider, TableLookups(configuration, provider.experiments, read_yaml(PAPER))


def same_path(path, other):
    """Whether two paths lead to the same place; an empty one is the working folder."""
    return os.path.realpath(path) == os.path.realpath(other)


def prefix():
    """Shell prefix that makes `dmd` importable and, unless conda provides Python, puts Snakemake's first in PATH.

    Stages import nothing from the working folder, where a file named torch.py may lie: workflow/python/ holds only a
    link to dmd/, and PYTHONSAFEPATH is what `python -P` sets, for all processes that a stage starts.
    """
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not same_path(path, os.getcwd())]
    paths = [str(ROOT / "workflow" / "python"), *given]
    lines = ["set -euo pipefail", f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(os.pathsep.join(paths))}"]
    if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
        lines.append(f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"')
    return "; ".join(lines).replace("{", "{{").replace("}", "}}") + "; "


provider, tables = provider_and_tables()
os.environ.update(provider.environment())
shell.prefix(prefix())
os.environ.update(PYTHONSAFEPATH="1")  # for the Snakemake that runs a job on a cluster, which is started as a module

# Before its time limit SLURM sends SIGUSR1 to every process of a job; the stage handles it, Snakemake must ignore it.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
