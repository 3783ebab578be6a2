"""The configuration: sections, experiments with inheritance, and the table of rules. No torch here.

`load` reads a file; `Experiments` answers what scripts ask, and the rules of the workflow through `provider` and
`tables`; `RULES` describes each rule. A section is a model in `sections`, `training` or `methods`, which is the one
place of its defaults, ranges and checks.
"""

from dmd.config.experiments import Configuration, Experiments, load, merge, resolve
from dmd.config.messages import ConfigError, suggestion, unknown_experiment
from dmd.config.reading import Json, read_file, read_yaml
from dmd.config.rules import RULES, VERSIONS

__all__ = [
    "RULES",
    "VERSIONS",
    "ConfigError",
    "Configuration",
    "Experiments",
    "Json",
    "load",
    "merge",
    "read_file",
    "read_yaml",
    "resolve",
    "suggestion",
    "unknown_experiment",
]
