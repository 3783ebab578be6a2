"""Checks what a command line of Snakemake gives with --configfile and --config, before Snakemake reads it.

Of two equal keys it would take the last; it would unfold every alias, and run the Python code of templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmd.config.messages import ConfigError
from dmd.config.reading import parse_yaml, read_yaml
from dmd.config.rule_lookups import exits_on_config_error


@exits_on_config_error
def check(files: Sequence[Path], arguments: Sequence[str]) -> None:
    """Ends the process with one message if a file of --configfile, or --config, cannot be used.

    Files that these include are read by this project alone, which checks them then.
    """
    try:
        for path in files:
            read_yaml(path)
        check_arguments(arguments)
    except ConfigError as error:
        raise ConfigError(f"the configuration cannot be used\n{error}") from error


def check_arguments(entries: Sequence[str]) -> None:
    """Checks what the command line gives with --config, texts KEY=VALUE, of which Snakemake takes the last of a key.

    Raises:
        ConfigError: a key stands twice, or `parse_yaml` refuses a value.
    """
    names = [entry.partition("=")[0] for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f'--config: the key "{twice[0]}" stands twice')
    for name, entry in zip(names, entries, strict=True):
        value = entry.partition("=")[2]
        if value.lstrip()[:1] in ("{", "["):
            parse_yaml(value, f"--config {name}")
