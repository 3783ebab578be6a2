"""Finds artifacts that were deleted, truncated or altered, and the artifacts made from them.

python -m dmd.verify results             only lists them
python -m dmd.verify results --delete    removes them; snakemake then makes those that its targets need

Snakemake does not check an intermediate file if the final one exists; this command compares every artifact with the
record beside it. An artifact without a record counts as damaged, unless it is a table or picture. Other files are left
alone, and so is an undamaged artifact whose input was made again, since Snakemake remakes it. Exit status: 0: no
damage; 1: damage was found (and removed, with --delete); 2: the check itself could not be completed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from dmd.config import printing
from dmd.data import remote
from dmd.provenance import record
from dmd.provenance.audit import audit, records_now


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delete", action="store_true", help="remove bad files, and the files made from them")
    parsed = parser.parse_args()
    try:
        bad = run(folder=parsed.folder, delete=parsed.delete)
    except (ValueError, OSError) as error:
        print(printing.line(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if bad else 0)


def run(*, folder: Path, delete: bool) -> dict[Path, str]:
    """Checks all artifacts below `folder` and prints the result.

    Args:
        delete: remove the bad files, all files made from them, and their records.

    Returns:
        The reason for each bad file; empty if there is no damage.

    Raises:
        ValueError: the folder is missing, a stage is writing into it, or a stage has written a file during the check
            that would be removed.
    """
    before = records_now(folder)
    damaged, derived, notes = audit(folder, remote.sizes)
    bad = damaged | derived
    for path, reason in bad.items():
        print(printing.line(f"{path}: {reason}"))
    print("\n".join(map(printing.line, notes)))
    print(f"{len(damaged)} bad, {len(derived)} made from them")
    if bad and not delete:
        print("not removed; --delete (`make verify`) removes them")
    elif bad:
        _remove(bad, before)
        print("removed; `snakemake --cores all` makes those again that its targets need:")
        print("\n".join(printing.line(f"    {path}") for path in sorted(bad)))
    return bad


def _remove(bad: Collection[Path], before: Mapping[Path, tuple[int, int] | None]) -> None:
    """Removes artifacts and their records, derived ones first, so that an interrupted run can be repeated."""
    for path in bad:
        _refuse_if_written(path, before)
    for path in reversed(list(bad)):
        with record.exclusive(path):
            _refuse_if_written(path, before)
            path.unlink(missing_ok=True)
            record.sidecar(path).unlink(missing_ok=True)


def _refuse_if_written(path: Path, before: Mapping[Path, tuple[int, int] | None]) -> None:
    if record.file_identity(path) != before.get(path):
        raise ValueError(
            f"a stage wrote {path} during the check, so it was not removed: run this again when no stage runs"
        )


if __name__ == "__main__":
    main()
