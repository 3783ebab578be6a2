# Checks config.yaml before Snakemake reads it, which would take the last of two equal keys, unfold every alias and run
# the Python code of templates.
import os
import sys
from pathlib import Path

# Snakemake puts the folder of the Snakefile first, where a file named pydantic.py may lie.
sys.path[:] = [os.path.join(workflow.basedir, "workflow", "python"), *(p for p in sys.path if p != workflow.basedir)]

from dmd.config import ConfigError, printing, read_yaml

if os.path.exists("config.yaml"):
    try:
        read_yaml(Path("config.yaml"))
    except ConfigError as error:
        sys.exit(printing.lines(f"error: the configuration cannot be used\n{error}"))
