"""Finds artifacts that were deleted, truncated or altered, and what was made from them.

python -m dmd.stages.verify results             only names
python -m dmd.stages.verify results --delete    removes; a plain run then remakes what is missing

Snakemake does not look at an intermediate file while the final one stands; this does, by the record that lies beside
each artifact. An artifact without a record counts as damaged; any other file is left alone, and so is a whole artifact
whose input was made anew: Snakemake remakes it. Exit status: 0 no damage, 1 damage was found (and, with --delete,
removed), 2 could not look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from dmd.cluster import garbage
from dmd.data import remote
from dmd.provenance import record
from dmd.provenance.audit import audit, records_now


def main() -> None:
    """Command line: see the module."""
    garbage.switch_on()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delete", action="store_true", help="remove what is bad, and what was made from it")
    parsed = parser.parse_args()
    try:
        bad = run(folder=parsed.folder, delete=parsed.delete)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if bad else 0)


def run(*, folder: Path, delete: bool) -> dict[Path, str]:
    """Checks everything below `folder` and prints what it finds.

    Args:
        delete: remove the bad files, all that was made from them, and their records.

    Returns:
        The reason for each bad file; empty if all is well.

    Raises:
        ValueError: the folder is missing, or a stage is writing into it now, or wrote meanwhile what would be removed.
    """
    before = records_now(folder)
    damaged, derived, notes = audit(folder, remote.sizes)
    bad = damaged | derived
    for path, reason in bad.items():
        print(f"{path}: {reason}")
    print("\n".join(notes))
    print(f"{len(damaged)} bad, {len(derived)} made from them")
    if bad and not delete:
        print("kept; with --delete (`make verify`) they are removed")
    elif bad:
        _remove(bad, before)
        print("removed; a plain run (`snakemake --cores all`) remakes what its targets need of:")
        print("\n".join(f"    {path}" for path in sorted(bad)))
    return bad


def _remove(bad: Collection[Path], before: Mapping[Path, tuple[int, int] | None]) -> None:
    """Removes artifacts and their records, those made from others first: what is left then is found again."""
    for path in bad:
        _refuse_if_written(path, before)
    for path in reversed(list(bad)):
        with record.exclusive(path):
            _refuse_if_written(path, before)
            path.unlink(missing_ok=True)
            record.sidecar(path).unlink(missing_ok=True)


def _refuse_if_written(path: Path, before: Mapping[Path, tuple[int, int] | None]) -> None:
    if record.file_identity(path) != before.get(path):
        raise ValueError(f"a stage wrote {path} while this looked; it is kept. Run it again when no stage works")


if __name__ == "__main__":
    main()
