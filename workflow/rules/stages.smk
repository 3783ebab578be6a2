# The rules of an experiment. A module: the Snakefile says what all of its rules have in common.
from pathlib import Path

from dmd.config import RULES
from dmd.config.rule_lookups import braced, existing_scores, flag
from dmd.config.rule_table import CLIP, FOLDER, PIPELINE
from dmd.provenance.files import sha256

provider = config  # `config` of a module is what the Snakefile passes


wildcard_constraints:
    experiment="[a-z0-9][a-z0-9-]*",
    first=r"\d{5}",
    last=r"\d{5}",


include: "images.smk"
include: "teacher.smk"
include: "pipeline.smk"
include: "reference.smk"
include: "prompts.smk"
include: "states.smk"
include: "pairs.smk"
include: "distill.smk"
include: "export.smk"
include: "sample.smk"
include: "evaluate.smk"
