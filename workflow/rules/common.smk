# Reads the configuration, makes the two objects that rules look things up in, and sets what all jobs share.
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from dmd.config import RULES, ConfigError, read_yaml, reading, resolve
from dmd.config.rule_lookups import RuleLookups, exits_on_config_error
from dmd.config.table_lookups import TableLookups
from dmd.provenance.files import sha256

ROOT = Path(workflow.basedir)
PAPER = ROOT / "workflow" / "resources" / "published_values.yaml"  # published tables


def merged_files():
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


@exits_on_config_error
def provider_and_tables():
    """The look-ups of rules: over experiments, and over tables and charts."""
    try:
        configuration = resolve(merged_files())
    except ConfigError as error:
        raise ConfigError(f"the configuration cannot be used\n{error}")
    provider = RuleLookups(configuration)
    return provider, TableLookups(configuration, provider.experiments, read_yaml(PAPER))


def prefix():
    """Shell prelude: the python that runs Snakemake comes first, unless conda provides one; `dmd` can be imported."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    lines = ["set -euo pipefail", f"export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}"]
    if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
        lines.append(f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"')
    return "; ".join(lines).replace("{", "{{").replace("}", "}}") + "; "


provider, tables = provider_and_tables()
shell.prefix(prefix())

# Before its time limit SLURM sends SIGUSR1 to every process of a job; the stage heeds it, Snakemake must outlive it.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
