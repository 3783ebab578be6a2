"""Finds artifacts that were deleted, truncated or altered, and removes them with all that was made from them.

python -m dmd.stages.verify results            removes; a plain run then remakes what is missing
python -m dmd.stages.verify results --keep     only names

Snakemake does not look at an intermediate file while the final one stands; this does, by the record that lies beside
each artifact. Exit status: 0 all good, 1 damage was found (and, unless --keep, removed), 2 could not look.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dmd.artifacts import record
from dmd.artifacts.audit import audit


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--delete", action="store_true", default=True, help="remove what is bad (default)")
    choice.add_argument("--keep", action="store_false", dest="delete", help="only name what is bad")
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
        ValueError: the folder is missing, or a stage is writing into it now.
    """
    damaged, derived, notes = audit(folder)
    bad = damaged | derived
    for path, reason in bad.items():
        print(f"{path}: {reason}")
    print("\n".join(notes))
    print(f"{len(damaged)} bad, {len(derived)} made from them")
    if bad and delete:
        for path in bad:
            path.unlink(missing_ok=True)
            record.sidecar(path).unlink(missing_ok=True)
        print("removed; a plain run (`snakemake --cores all`) remakes what its targets need of:")
        print("\n".join(f"    {path}" for path in sorted(bad)))
    return bad


if __name__ == "__main__":
    main()
