# Checks config.yaml before Snakemake reads it, which would take the last of two equal keys and unfold every alias.
import os
import sys
from pathlib import Path

from dmd.config import ConfigError, read_yaml

if os.path.exists("config.yaml"):
    try:
        read_yaml(Path("config.yaml"))
    except ConfigError as error:
        sys.exit(f"error: the configuration cannot be used\n{error}")
