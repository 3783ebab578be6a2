"""Names of tensors, log columns and facts that this tree spells otherwise than the first house."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Rename:
    """One row of the table; the first row that fits a name decides.

    Attributes:
        artifact: glob of the artifact below results/, "*" for all.
        old: regular expression of the whole name in the first house; None where this tree has a name more.
        new: what the name becomes, with the groups of `old`; where `old` is None the regular expression of the name
            that this tree has more; None where this tree has the name no longer.
    """

    artifact: str
    old: str | None
    new: str | None


COLUMNS = {
    "matching_loss": "loss/matching",
    "regression_loss": "loss/regression",
    "fake_loss": "loss/fake",
    "generator_gradient_norm": "gradient_norm/student",
    "fake_gradient_norm": "gradient_norm/fake",
    "matching_factor": "matching/factor",
    "nonfinite_samples": "matching/nonfinite",
    "generated_mean": "generated/mean",
    "generated_std": "generated/std",
    r"gap_bin(\d)": r"matching/gap\1",
}
CHECKPOINT, LOG = "*/checkpoints/*", "*/log.parquet"
RENAMES: tuple[Rename, ...] = (
    Rename(CHECKPOINT, r"state\.(network|optimiser)\.generator\.(.*)", r"state.\1.student.\2"),
    Rename(CHECKPOINT, r"state\.network\.average\.(.*)", r"state.average.\1"),
    *(Rename(LOG, old, new) for old, new in COLUMNS.items()),
    *(Rename(CHECKPOINT, rf"log\.{old}", f"log.{new}") for old, new in COLUMNS.items()),
    Rename("*/generator.safetensors", None, r".*calls.*"),  # how the student is sampled
    Rename(LOG, None, r".*calls.*"),
)


@dataclass(frozen=True)
class Names:
    """Names of both sides brought together.

    Attributes:
        pairs: name in the first house and name in this tree, of what both have.
        only_old, only_new: what one side lacks, though no row says that it should.
        declared: what one side lacks as a row says.
    """

    pairs: list[tuple[str, str]]
    only_old: list[str]
    only_new: list[str]
    declared: list[str]


def match(artifact: str, old: Iterable[str], new: Iterable[str], renames: Sequence[Rename] = RENAMES) -> Names:
    """Brings the names of an artifact together; ValueError if two old names become one."""
    rows = [row for row in renames if fnmatchcase(artifact, row.artifact)]
    renamed = {name: _renamed(name, rows) for name in old}
    gone = [name for name, other in renamed.items() if other is None]
    wanted = {other: name for name, other in renamed.items() if other is not None}
    if len(wanted) + len(gone) != len(renamed):
        raise ValueError(f"{artifact}: rows of RENAMES give two names of the first house the same new one")
    there = set(new)
    extra = sorted(there - wanted.keys())
    added = [name for name in extra if any(row.old is None and re.fullmatch(row.new or "", name) for row in rows)]
    return Names(
        pairs=[(name, other) for other, name in wanted.items() if other in there],
        only_old=[name for other, name in wanted.items() if other not in there],
        only_new=[name for name in extra if name not in added],
        declared=gone + added,
    )


def _renamed(name: str, rows: Sequence[Rename]) -> str | None:
    for row in rows:
        if row.old is not None and (found := re.fullmatch(row.old, name)):
            return None if row.new is None else found.expand(row.new)
    return name
