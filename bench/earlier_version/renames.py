"""Names of tensors, log columns and facts that differ between the earlier version and this tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Rename:
    """One row of the table; the first matching row is used.

    Attributes:
        artifact: glob of the artifact below results/, "*" for all.
        old: regular expression of the full name in the earlier version; None for a name that only this tree has.
        new: the new name, with the groups of `old`; if `old` is None the regular expression of the new name; None for a
            name that this tree no longer has.
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
    """Names of both sides, matched.

    Attributes:
        pairs: names in the earlier version and in this tree that match.
        only_old, only_new: names of one side only, without a row that says so.
        declared: names of one side only, as a row says.
    """

    pairs: list[tuple[str, str]]
    only_old: list[str]
    only_new: list[str]
    declared: list[str]


def match(artifact: str, old: Iterable[str], new: Iterable[str], renames: Sequence[Rename] = RENAMES) -> Names:
    """Matches the names of an artifact; ValueError if two old names become one."""
    rows = [row for row in renames if fnmatchcase(artifact, row.artifact)]
    new_names = {name: _new_name(name, rows) for name in old}
    removed = [name for name, other in new_names.items() if other is None]
    expected = {other: name for name, other in new_names.items() if other is not None}
    if len(expected) + len(removed) != len(new_names):
        raise ValueError(f"{artifact}: rows of RENAMES give two names of the earlier version the same new one")
    actual = set(new)
    extra = sorted(actual - expected.keys())
    added = [name for name in extra if any(row.old is None and re.fullmatch(row.new or "", name) for row in rows)]
    return Names(
        pairs=[(name, other) for other, name in expected.items() if other in actual],
        only_old=[name for other, name in expected.items() if other not in actual],
        only_new=[name for name in extra if name not in added],
        declared=removed + added,
    )


def _new_name(name: str, rows: Sequence[Rename]) -> str | None:
    for row in rows:
        if row.old is not None and (matched := re.fullmatch(row.old, name)):
            return None if row.new is None else matched.expand(row.new)
    return name
