"""The configuration: sections, experiments with inheritance, and the table of rules. No torch here.

`load` reads a file; `Experiments` answers what scripts ask, and what the rules of the workflow ask through
`rule_lookups` and `table_lookups`; `RULES` describes each rule. A section is a model in `sections`, `training` or
`methods`, which is the one place of its defaults, ranges and checks.
"""

from dmd.config.artifacts import Experiments
from dmd.config.inheritance import Configuration, load, merge, resolve
from dmd.config.messages import ConfigError, unknown_experiment
from dmd.config.reading import Json, read_file, read_yaml
from dmd.config.rule_table import RULES

__all__ = [
    "RULES",
    "ConfigError",
    "Configuration",
    "Experiments",
    "Json",
    "load",
    "merge",
    "read_file",
    "read_yaml",
    "resolve",
    "unknown_experiment",
]
